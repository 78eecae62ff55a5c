"""Where a base keeps the experts that an adapter has as one stack: in one array, or each in arrays of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import FormatError
from ..io.lazy import info

Record = Mapping[str, Any]


def one_array(base: Mapping[str, np.ndarray], module: str) -> str | None:
    """The name of the array that holds a whole stack, if the base has one: a module's weight, or a parameter itself, as PEFT names it."""
    return next((name for name in (f"{module}.weight", module) if name in base and len(info(base, name)[0]) == 3), None)


def output_first(base: Mapping[str, np.ndarray], name: str, factors: Sequence[np.ndarray], order: str | None) -> bool:
    """Whether an array of a stack is (experts, k, d), and not (experts, d, k). Raises FormatError where it is neither, or cannot be told.

    Weights follow the order of the base. Parameters follow none (transformers has both), so for None their shape has to tell.
    """
    shape, (count, d, _), k = info(base, name)[0], factors[0].shape, factors[1].shape[2]
    turned = {(count, d, k): False, (count, k, d): True}
    if shape not in turned:
        raise FormatError(f"it is a stack of {count} experts for weights of shape {[d, k]}, {name!r} has the shape {list(shape)}")
    if order is None:
        if d == k:
            raise FormatError(f"{name!r} has the shape {list(shape)}, from which loratk cannot tell the axis of the input from the other")
        return turned[shape]
    if d != k and turned[shape] != (order == "output-first"):
        raise FormatError(f"it was made for weights of shape {[d, k]}, those of {name!r} act as {[k, d]}, taken {order.replace('-', ' ')}")
    return order == "output-first"


def each(base: Mapping[str, np.ndarray], module: str, count: int) -> list[str]:
    """The modules of the experts, where each has one: their number stands before the last part of the path, as in `experts.3.up_proj`.

    mlx-lm's `switch_mlp` is `experts` there. Raises FormatError if the base has other experts than `count`.
    """
    head, _, last = module.rpartition(".")
    around, _, kind = head.rpartition(".")
    home = f"{around}.experts" if kind == "switch_mlp" and around else head
    paths = [f"{home}.{number}.{last}" for number in range(count)]
    if lacks := next((path for path in paths if f"{path}.weight" not in base), None):
        raise FormatError(f"the base has neither an array {module!r} of 3 axes, or of its weight, nor {lacks + '.weight'!r}")
    if (more := f"{home}.{count}.{last}.weight") in base:
        raise FormatError(f"it is a stack of {count} experts, and the base has more: {more!r}")
    return paths


def expert(record: Record, held: Mapping[str, np.ndarray], number: int) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The record and the parameters of one expert of a stack."""
    wrong = {key: array.shape for key, array in held.items() if array.shape[:1] != (record["experts"],)}
    if wrong:
        raise FormatError(f"each parameter of a stack of {record['experts']} experts must have as many entries, found {wrong}")
    return {key: value for key, value in record.items() if key != "experts"}, {key: array[number] for key, array in held.items()}
