"""`loratk export --merged`: the adapters of one file folded into a base's weights, by `merge`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .adapters import Exported
from .checkpoint import merge


def export_merged(
    source: str | Path,
    base: str | Path,
    destination: str | Path,
    *,
    adapters: Sequence[str] | None = None,
    **options: Any,
) -> Exported:
    """Write a base's arrays with adapters of a file (all if None) folded in, each with the weight 1.

    `options` are those of `merge`, by the same names. Arrays that no adapter changes, and the base's strings, are copied; the ledger of
    what was merged is added to them. bfloat16 stays that in safetensors, and becomes float32 in other stores.
    """
    done = merge(base, source, destination, names=adapters, **options)
    return Exported([adapter.name for adapter in done.adapters], done.notes)
