"""The built-in layer types and methods, registered like any plugin's."""

from typing import Any

from ..hookspecs import hookimpl
from .layer_types import EmbeddingType, LayerType, LinearType
from .methods import Dora, Lora, Method


@hookimpl
def register_layer_types() -> list[LayerType[Any]]:
    """Linear and Embedding."""
    return [LinearType(), EmbeddingType()]


@hookimpl
def register_methods() -> list[Method]:
    """LoRA and DoRA."""
    return [Lora(), Dora()]
