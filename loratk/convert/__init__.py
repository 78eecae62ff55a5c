"""Adapter files into other formats and dtypes, or merged into a base's weights. Needs no module, only files."""

from .adapters import Exported, export_adapters
from .checkpoint import Merged, merge
from .merged import export_merged
from .merging import merged_arrays
from .unmerging import Unmerged, unmerge

__all__ = ["Exported", "Merged", "Unmerged", "export_adapters", "export_merged", "merge", "merged_arrays", "unmerge"]
