"""The built-in layer types, methods and initialisations, registered like any plugin's."""

from typing import Any

from ..hookspecs import hookimpl
from .inits import Init
from .inits.chance import Gaussian, Kaiming
from .layer_types import EmbeddingType, LayerType, LinearType
from .methods import Method
from .methods.dora import Dora
from .methods.lora import Lora


@hookimpl
def register_layer_types() -> list[LayerType[Any]]:
    """Linear and Embedding."""
    return [LinearType(), EmbeddingType()]


@hookimpl
def register_methods() -> list[Method]:
    """LoRA and its relatives."""
    return [Lora(), Dora()]


@hookimpl
def register_inits() -> list[Init]:
    """From chance."""
    return [Kaiming(), Gaussian()]
