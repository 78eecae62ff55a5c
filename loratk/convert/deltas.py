"""What a method adds to a weight as it acts, (d, k), in float64: as a whole, or by blocks of rows or outputs where that is the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from ..errors import FormatError
from ..exchange.bake import dora_update
from ..exchange.factors import dense_update
from ..kernels import get_backend
from ..plugins import Registry

Arrays = dict[str, np.ndarray]
Record = Mapping[str, Any]
Delta = Callable[[np.ndarray, Arrays], np.ndarray]
"""Given a weight (d, k) and the parameters in float64, the update (d, k)."""
BLOCK = 1 << 20


def wide(tensor: np.ndarray) -> np.ndarray:
    """A parameter in float64; whole numbers as they are."""
    return tensor.astype(np.float64) if tensor.dtype.kind == "f" else tensor


def is_product(record: Record) -> bool:
    """Whether a module is plain LoRA: its update is scaling A B."""
    return record["method"] == "lora" and record.get("groups", 1) == 1


def add_product(into: np.ndarray, a: np.ndarray, b: np.ndarray) -> None:
    """Add A B to a matrix (d, k) by blocks of rows: of plain LoRA neither the weight nor the update is needed whole."""
    rows = max(1, BLOCK // max(1, b.shape[1]))
    for start in range(0, len(a), rows):
        into[start : start + rows] += a[start : start + rows] @ b


def by_outputs(record: Record, tensors: Arrays) -> Iterator[tuple[slice, Arrays]]:
    """Blocks of outputs, and the parameters for them: of DoRA, whose outputs know nothing of each other; of other methods all outputs."""
    if record["method"] != "dora" or tensors.keys() != {"lora_A", "lora_B", "magnitude"} or record.get("groups", 1) != 1:
        yield slice(None), tensors
        return
    d, k = len(tensors["lora_A"]), tensors["lora_B"].shape[1]
    step = max(1, BLOCK // d)
    for some in (slice(start, start + step) for start in range(0, k, step)):
        yield some, {**tensors, "lora_B": tensors["lora_B"][:, some], "magnitude": tensors["magnitude"][some]}


def delta_of(acts_as: tuple[int, int], record: Record, held: Arrays, registry: Registry) -> Delta:
    """What gives the update of a weight (d, k): the method, or for grouped convolutions, which methods do not know, the factors."""
    method = registry.method(record["method"])
    if record.get("groups", 1) != 1 and record["method"] in ("lora", "dora"):
        if "magnitude" in held:
            return lambda weight, tensors: dora_update(weight, record, tensors)
        return lambda weight, tensors: dense_update(record, tensors)
    if found := list(method.parameter_faults(held, *acts_as, record.get("rank", 0))):
        raise FormatError("; ".join(found))
    scaling = float(record.get("scaling", 1.0))
    return lambda weight, tensors: np.asarray(method.delta(get_backend("reference"), weight, tensors, scaling))


def as_slice(columns: Any) -> slice:
    """The columns of a record, [start, stop]. Raises FormatError."""
    if not isinstance(columns, list) or len(columns) != 2 or not all(isinstance(place, int) for place in columns):
        raise FormatError(f"its record must give columns as [start, stop], found {columns!r}")
    return slice(*columns)
