"""Adapters: their settings, the layers and models that carry them, and the layer types and methods they are made from."""

from .adapter import LoraAdapter
from .config import LoraConfig
from .control import Controller
from .inits import Init, Start, Started
from .layer import LoraLayer
from .layer_types import LayerType
from .linear import LoraLinear
from .methods import Call, Method
from .model import LoraModel

__all__ = [
    "Call", "Controller", "Init", "LayerType", "LoraAdapter", "LoraConfig", "LoraLayer", "LoraLinear", "LoraModel", "Method", "Start",
    "Started",
]  # fmt: skip
