"""Adapters: their settings, the layers and models that carry them, and the layer types and methods they are made from."""

from .adapter import LoraAdapter
from .alpha import AlphaChoice, ChosenAlpha, choose_alpha
from .config import LoraConfig
from .control import Controller
from .inits import Gatherer, Init, Seen, Start, Started
from .layer import LoraLayer
from .layer_types import LayerType
from .linear import LoraLinear
from .methods import Call, Method
from .model import LoraModel
from .selection import PerRow
from .recipes import lora_plus

__all__ = [
    "AlphaChoice", "Call", "ChosenAlpha", "Controller", "Gatherer", "Init", "LayerType", "LoraAdapter", "LoraConfig", "LoraLayer",
    "LoraLinear", "LoraModel", "Method", "PerRow", "Seen", "Start", "Started", "choose_alpha", "lora_plus",
]  # fmt: skip
