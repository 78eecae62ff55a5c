"""How the modules of several adapters that have one name lie, whether they fit each other, and how a dense result is written."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..errors import ConfigError
from ..exchange.base import EMBEDDINGS
from .deltas import Effect

Record = Mapping[str, Any]


def misfits(effects: Sequence[Effect]) -> Iterator[str]:
    """Why modules of one name cannot be merged."""
    weighty = [effect for effect in effects if effect.deltas]
    lies = {"weights that act as": [shape_of(effect) for effect in weighty]}
    for key in ("groups", "experts", "kernel", "columns"):
        default = {"groups": 1, "kernel": None}.get(key, "none")
        lies[key] = [value for effect in weighty if (value := effect.record.get(key, default)) is not None]
    for key in dict.fromkeys(key for effect in effects for key in effect.arrays):
        lies[f"{key} of the shape"] = [effect.arrays[key].shape for effect in effects if key in effect.arrays]
    for what, values in lies.items():
        sizes = what != "columns"
        told = list(
            dict.fromkeys("x".join(map(str, value)) if sizes and isinstance(value, list | tuple) else str(value) for value in values)
        )
        if len(told) > 1:
            yield f"{what} {' and '.join(told)}"


def shape_of(effect: Effect) -> tuple[int, ...]:
    """(d, k) of a weight, (experts, d, k) of a stack."""
    delta = effect.deltas[0]
    return (len(effect.deltas), delta.d, delta.k) if "experts" in effect.record else (delta.d, delta.k)


def merged_record(effects: Sequence[Effect]) -> dict[str, Any]:
    """What the records say together; a layer type other than linear counts before that, which formats say that know no other."""
    merged: dict[str, Any] = {}
    for effect in [effect for effect in effects if effect.deltas] or effects:
        kind = effect.record.get("layer_type")
        if merged.get("layer_type") == "linear" and kind not in (None, "linear"):
            merged["layer_type"] = kind
        merged = {**effect.record, **merged}
    return merged


def torch_shape(record: Record, module: str, d: int, k: int) -> tuple[int, ...]:
    """The shape of a weight that acts as (d, k) as torch keeps it. Raises ConfigError where it has no place of its own there."""
    kind = record.get("layer_type", "linear")
    if "experts" in record or "columns" in record or kind == "einsum":
        what = (
            "a stack of experts" if "experts" in record else "a block of a fused projection" if "columns" in record else "an einsum kernel"
        )
        raise ConfigError(f"it is {what}, which cannot be kept dense; ask for a rank")
    if kind.startswith("conv"):
        window = tuple(record["kernel"])
        return (k, d // math.prod(window), *window)
    if kind == "embedding" and module.rpartition(".")[2] not in EMBEDDINGS:
        raise ConfigError("it is a look-up table whose name does not tell that, so a dense one would be turned; ask for a rank")
    return (d, k) if module.rpartition(".")[2] in EMBEDDINGS else (k, d)
