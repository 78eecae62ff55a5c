"""Adapters: their settings, the layers and models that carry them, and the layer types and methods they are made from."""

from .adapter import LoraAdapter
from .alpha import AlphaChoice, ChosenAlpha, choose_alpha
from .config import LoraConfig
from .control import Controller, controlled_step
from .drop_layers import LoraDrop, importance, lora_drop
from .inits import Gatherer, Init, Seen, Start, Started
from .layer import LoraLayer
from .layer_types import LayerType
from .linear import LoraLinear
from .methods import Call, Method
from .model import LoraModel
from .recipes import lora_plus
from .resizing import Ranks
from .selection import PerRow

__all__ = [
    "AlphaChoice", "Call", "ChosenAlpha", "Controller", "Gatherer", "Init", "LayerType", "LoraAdapter", "LoraConfig", "LoraDrop",
    "LoraLayer", "LoraLinear", "LoraModel", "Method", "PerRow", "Ranks", "Seen", "Start", "Started", "choose_alpha", "controlled_step",
    "importance", "lora_drop", "lora_plus",
]  # fmt: skip
