"""Adapters as plain data, to and from files: loratk's own layout in any store, and the formats of other tools."""

from .base import Checkpoint
from .comparison import Comparison, ModuleDifference, diff
from .configs import config_for
from .detect import Detected
from .format import FEATURES, AdapterFormat, Base, Option, Reading, Request
from .hub import detect_format, load_adapter, save_adapter
from .own import FORMAT, list_adapters, read_adapters, write_adapters
from .plain import plain_lora
from .portable import portable
from .state import AdapterState
from .stores import formats_of

__all__ = [
    "FEATURES", "FORMAT", "AdapterFormat", "AdapterState", "Base", "Checkpoint", "Comparison", "Detected", "ModuleDifference", "Option",
    "Reading", "Request", "config_for", "detect_format", "diff", "formats_of", "list_adapters", "load_adapter", "plain_lora",
    "portable", "read_adapters", "save_adapter", "write_adapters",
]  # fmt: skip
