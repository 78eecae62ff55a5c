"""Adapter files into other formats and dtypes, or merged into a base's weights. Needs no module, only files."""

from .adapters import Exported, export_adapters
from .merged import export_merged
from .merging import merge

__all__ = ["Exported", "export_adapters", "export_merged", "merge"]
