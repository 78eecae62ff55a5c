"""One adapter as plain data, and what can be wrong with it: what all formats read into and write from."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import choices


@dataclass(frozen=True, eq=False)
class AdapterState:
    """One adapter as plain data.

    `tensors` are named `<module path>.<parameter>`. `modules` says for each module path what a reader must know, expressible as JSON.
    `config` is that of a LoraConfig, or {} where nobody knows it. Parameters, with the weight as a matrix (d, k):

    lora_A (d, r), lora_B (r, k): the factors. initial_A (d, r), initial_B (r, k): the first ones of an init that takes their product, times
    scaling, off the weight, so that the update is scaling (lora_A lora_B - initial_A initial_B). gain (1,): a learned factor of
    lora_A lora_B (method `lora_gain`). lora_E (r,), gate (r,): AdaLoRA's and SoRA's diagonal between lora_A and lora_B. magnitude (k,):
    DoRA's. bias (k,): added to the base's bias. lora_bias (k,): the same, but times scaling. With the method `full` parameters replace the
    module's own of those names, with `diff` they are added to them. Every other method has the parameters of its source, as they are there.

    The record of a module: `method`; `layer_type` (linear, embedding, conv1d, conv2d, conv3d, einsum); `shape` [d, k]; `rank`, `alpha` and
    `scaling`, the factor to apply. Where they apply also: `alpha_source`, where alpha came from; `columns` [start, stop] of a block of a
    fused projection, which is named after it; `kernel`, for a convolution its window [kh, kw], with d counted as (kh, kw, channels of a
    group), for einsum the shape of the whole kernel, beside its `equation` where known; `groups` of a convolution, whose lora_B is
    (r / groups, k); `experts` E, with all parameters under a leading axis of that length; `orientation`, "torch" (output first) for `full`,
    `diff` and methods whose parameters are kept as in the source; `dtypes`, {parameter: "bfloat16"} for numbers stored in a dtype that
    NumPy lacks, float32 here.
    """

    name: str
    config: dict[str, Any]
    tensors: dict[str, np.ndarray]
    modules: dict[str, dict[str, Any]]
    fingerprint: str = ""  # of the base model; "" where it is not known
    metadata: dict[str, str] = field(default_factory=dict)  # the user's own
    version: str = ""  # of the loratk that wrote it; filled in on writing

    def parameters(self) -> dict[str, dict[str, np.ndarray]]:
        """The tensors by module and parameter; a module without any has an empty dict."""
        found: dict[str, dict[str, np.ndarray]] = {module: {} for module in self.modules}
        for key, tensor in self.tensors.items():
            module, _, parameter = key.rpartition(".")
            found.setdefault(module, {})[parameter] = tensor
        return found


def dtypes_of(record: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> str:
    """The dtypes in which a module's parameters are stored, such as "bfloat16" or "float16+float32"."""
    marked = record.get("dtypes", {})
    return "+".join(sorted({marked.get(key, tensor.dtype.name) for key, tensor in tensors.items()}))


def module_faults(module: str, record: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> Iterator[str]:
    """What is wrong with one module's record and the shapes of its parameters."""
    where = f"module {module!r}"
    if not record:
        yield f"{where} has tensors ({choices(shapes)}) but no record (method, rank, alpha, scaling)"
        return
    if not shapes:
        yield f"{where} has a record but no tensors"
    if not isinstance(record.get("method"), str):
        yield f"{where}: method must be a name, found {record.get('method')!r}"
    for key in ("alpha", "scaling"):
        if key in record and not _is_number(record[key]):
            yield f"{where}: {key} must be a finite number, found {record[key]!r}"
    rank, shape = record.get("rank"), record.get("shape")
    if "rank" in record and not _is_size(rank):
        yield f"{where}: rank must be a whole number from 1 up, found {rank!r}"
    if "shape" in record and not (isinstance(shape, list | tuple) and len(shape) == 2 and all(_is_size(size) for size in shape)):
        yield f"{where}: shape must be two whole numbers [d, k], found {shape!r}"
        shape = None
    if "lora_A" not in shapes and "lora_B" not in shapes:
        return
    for key in ("rank", "alpha", "scaling"):
        if key not in record:
            yield f"{where}: {key} is missing"
    groups = record.get("groups", 1)
    if not _is_size(groups) or (_is_size(rank) and rank % groups):
        yield f"{where}: groups must be a whole number that divides the rank, found {groups!r}"
        groups = 1
    d, k = shape or ("d", "k")
    stack = (record["experts"],) if "experts" in record else ()
    inner = rank // groups if _is_size(rank) else "rank"
    wanted: dict[str, tuple[Any, ...]] = {"lora_A": (*stack, d, rank), "lora_B": (*stack, inner, k)}
    if "initial_A" in shapes or "initial_B" in shapes:
        wanted |= {"initial_A": wanted["lora_A"], "initial_B": wanted["lora_B"]}
    if "gain" in shapes:
        wanted["gain"] = (1,)
    wanted |= {diagonal: (rank,) for diagonal in ("lora_E", "gate") if diagonal in shapes}
    for parameter, want in wanted.items():
        got = shapes.get(parameter)
        if got is None:
            yield f"{where}: tensor {parameter!r} is missing"
        elif len(got) != len(want) or any(isinstance(size, int) and size != length for size, length in zip(want, got, strict=True)):
            yield f"{where}: {parameter} must have shape ({', '.join(map(str, want))}), found {got}"


def value_faults(tensors: Mapping[str, np.ndarray]) -> Iterator[str]:
    """Tensors with values that are not finite."""
    for key, tensor in tensors.items():
        if isinstance(tensor, np.ndarray) and tensor.dtype.kind == "f" and not np.isfinite(tensor).all():
            count = np.count_nonzero(~np.isfinite(tensor))
            what = "1 value that is" if count == 1 else f"{count} values that are"
            yield f"tensor {key!r} has {what} NaN or infinite: training diverged"


def metadata_faults(metadata: Any) -> Iterator[str]:
    """Whether metadata is what it must be, a dict of strings."""
    if not isinstance(metadata, Mapping) or not all(isinstance(text, str) for pair in metadata.items() for text in pair):
        yield f"metadata must be a dict of strings to strings, found {metadata!r}"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
