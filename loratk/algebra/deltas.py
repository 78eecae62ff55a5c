"""What a module of an adapter adds, as a merge rule sees it: the true delta of each weight, and what is added to parameters beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import ConfigError, LoratkError, choices
from ..exchange.factors import Pair
from .exact import BIASES, WHOLE, Exact

Record = Mapping[str, Any]
BLOCK = 1 << 20
"""Entries of a delta that are made at a time."""


@dataclass(frozen=True, eq=False)
class Delta:
    """What one adapter adds to one weight (d, k), float64: a pair for each block of columns (one, or one a group), or the matrix itself."""

    d: int
    k: int
    pairs: Sequence[Pair] = ()
    matrix: np.ndarray | None = None

    def columns(self, start: int, stop: int) -> np.ndarray:
        """Its columns from start to stop, (d, stop - start)."""
        if self.matrix is not None:
            return self.matrix[:, start:stop]
        found, first = [], 0
        for a, b in self.pairs:
            last = first + b.shape[1]
            if start < last and stop > first:
                found.append(a @ b[:, max(start - first, 0) : stop - first])
            first = last
        return found[0] if len(found) == 1 else np.hstack(found)

    def passes(self) -> Iterator[np.ndarray]:
        """All its columns, some at a time."""
        for start, stop in cuts(self.d, self.k):
            yield self.columns(start, stop)

    def parts(self, count: int) -> list[Pair]:
        """Factors of each of `count` equal blocks of columns, exactly: of a matrix it and the identity on its smaller side."""
        if self.matrix is None:
            return list(self.pairs)
        blocks = np.split(self.matrix, count, axis=1)
        return [(np.eye(self.d), block) if self.d <= block.shape[1] else (block, np.eye(block.shape[1])) for block in blocks]


def cuts(d: int, k: int) -> list[tuple[int, int]]:
    """The columns of a weight (d, k), cut into blocks of about BLOCK entries."""
    width = max(1, BLOCK // max(d, 1))
    return [(start, min(start + width, k)) for start in range(0, k, width)]


def no_delta(d: int, k: int, parts: int) -> Delta:
    """The delta of an adapter that does not have the module: zeros."""
    return Delta(d, k, [(np.zeros((d, 1)), np.zeros((1, k // parts)))] * parts)


def vector(array: np.ndarray) -> Delta:
    """An array of any axes as the delta of a weight with one output."""
    return Delta(array.size, 1, matrix=array.astype(np.float64).reshape(-1, 1))


@dataclass(frozen=True, eq=False)
class Effect:
    """What one module of one adapter does.

    kind: "lora" for any method with an update, "bias" for a bias alone, "diff" or "full". deltas: of its weight, for a stack of experts
    of each; none where it changes no weight. arrays: what is added to other parameters, by name; to the bias all together, under `bias`,
    or `lora_bias` where the adapter has none but that. wide: whether any of its parameters is in float64. rank: of all parts of a weight
    together, of what has no factors as its record says it. shape: that of the weight of a "diff" or "full" module as it is stored.
    """

    kind: str
    record: Record
    deltas: list[Delta]
    arrays: dict[str, np.ndarray]
    wide: bool
    rank: int = 0
    shape: tuple[int, ...] = ()

    @property
    def parts(self) -> int:
        """How many blocks of columns each weight has."""
        return int(self.record.get("groups", 1))


class Effects:
    """The modules of one adapter, one at a time, under the label that tells it from the others."""

    def __init__(self, exact: Exact, label: str) -> None:
        self.label, self.modules, self._exact = label, exact.modules, exact

    def shape(self, module: str) -> tuple[int, ...]:
        """(d, k) as the record says it; () where it does not, or there is no such module."""
        return tuple(self._exact.state.modules.get(module, {}).get("shape", ()))

    def of(self, module: str, *, d: int = 0) -> Effect:
        """What a module does. `d`: the inputs, for a method (VeRA) that may not tell them.

        Raises LoratkError where that needs a base that is not given, or is not known.
        """
        record, held = self._exact.module(module)
        wide = any(array.dtype == np.float64 for array in held.values())
        if record["method"] in WHOLE:
            return self._whole(module, record, held, wide)
        arrays = _biases(record, held)
        if (more := self._exact.bias(module)) is not None:
            arrays = {"bias": sum(arrays.values(), more)}
        if not held.keys() - BIASES:
            return Effect("bias", record, [], arrays, wide)
        record, update = self._exact.update(module, d=d)
        deltas = [_delta(piece) for piece in (update if "experts" in record else [update])]
        rank = sum(len(b) for _, b in deltas[0].pairs) or int(record.get("rank", min(deltas[0].d, deltas[0].k)))
        return Effect("lora", record, deltas, arrays, wide, rank)

    def _whole(self, module: str, record: Record, held: Mapping[str, np.ndarray], wide: bool) -> Effect:
        """A module that is replaced, or added to, parameter by parameter."""
        if odd := [key for key, array in held.items() if array.dtype.kind != "f"]:
            raise ConfigError(f"its {choices(odd)} are no floating-point numbers, of which there is no difference to merge")
        weighty = "weight" in held and held["weight"].ndim > 1
        deltas = [_delta(self._exact.update(module)[1])] if weighty else []
        arrays = {key: array.astype(np.float64) for key, array in held.items() if key != "weight" or not weighty}
        if record["method"] == "full":
            own = self._exact.replaced(module, arrays, record)
            arrays = {key: array - own[key] for key, array in arrays.items()}
        return Effect(record["method"], record, deltas, arrays, wide, shape=held["weight"].shape if weighty else ())


def _delta(update: Sequence[Pair] | Pair | np.ndarray) -> Delta:
    """A delta from what `Exact.update` gives of a weight."""
    if isinstance(update, np.ndarray):
        return Delta(update.shape[0], update.shape[1], matrix=update)
    pairs = [update] if isinstance(update, tuple) else update
    return Delta(len(pairs[0][0]), sum(b.shape[1] for _, b in pairs), pairs)


def _biases(record: Record, held: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What the parameters beside an update add to the bias, all together: lora_bias is scaled, bias is not."""
    scale = {"bias": 1.0, "lora_bias": float(record.get("scaling", 1.0))}
    found = {key: held[key].astype(np.float64) * scale[key] for key in sorted(BIASES) if key in held}
    return found if len(found) < 2 else {"bias": found["bias"] + found["lora_bias"]}


def collected(effects: Sequence[Effects], module: str, found: list[str]) -> list[Effect | None]:
    """What a module does in each adapter, None where there is no such module; what is not known is added to `found`."""
    d = next((shape[0] for one in effects if (shape := one.shape(module))), 0)
    got: list[Effect | None] = []
    for one in effects:
        try:
            got.append(one.of(module, d=d) if module in one.modules else None)
        except LoratkError as error:
            found.append(f"adapter {one.label!r}, module {module!r}: {error}")
    return got
