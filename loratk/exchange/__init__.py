"""Adapters as plain data, to and from files: loratk's own layout in any store, and the formats of other tools."""

from .format import FEATURES, AdapterFormat, Base, Option, Reading, Request
from .own import FORMAT, list_adapters, read_adapters, write_adapters
from .state import AdapterState

__all__ = [
    "FEATURES", "FORMAT", "AdapterFormat", "AdapterState", "Base", "Option", "Reading", "Request", "list_adapters", "read_adapters",
    "write_adapters",
]  # fmt: skip
