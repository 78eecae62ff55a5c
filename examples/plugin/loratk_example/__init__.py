"""What this plugin adds to loratk: one layer type, one method, one initialisation, one store, one format, one merge rule."""

from typing import Any

from loratk import LayerType, Method, hookimpl
from loratk.algebra import MergeRule
from loratk.exchange import AdapterFormat
from loratk.io import Store
from loratk.lora import Init

from .conv1d import Conv1d, Conv1dType
from .hira import HiRA
from .jsonl import JsonLinesStore
from .listing import ListingFormat
from .median import Median
from .signs import Signs

__all__ = ["Conv1d", "Conv1dType", "HiRA", "JsonLinesStore", "ListingFormat", "Median", "Signs"]


@hookimpl
def register_layer_types() -> list[LayerType[Any]]:
    """Conv1d."""
    return [Conv1dType()]


@hookimpl
def register_methods() -> list[Method]:
    """HiRA."""
    return [HiRA()]


@hookimpl
def register_inits() -> list[Init]:
    """Signs."""
    return [Signs()]


@hookimpl
def register_stores() -> list[Store]:
    """JSON lines."""
    return [JsonLinesStore()]


@hookimpl
def register_formats() -> list[AdapterFormat]:
    """The listing."""
    return [ListingFormat()]


@hookimpl
def register_merge_rules() -> list[MergeRule]:
    """The median."""
    return [Median()]
