"""What rounding does to an update that is added to weights of few digits, and rounding by chance, which loses none of it on average."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ..kernels.reference.merge import Measures

NEAREST, STOCHASTIC = "nearest", "stochastic"
KINDS = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64"}
"""The floating-point dtypes that loratk merges into, by what safetensors calls them."""
HALVES = ("BF16", "F16")


@dataclass(frozen=True)
class Rounding:
    """What became of an update, for one array or several.

    moved: weights whose update is not zero. kept: those of them that came out as they were, as the update is less than half a step there.
    update: the Frobenius norm of the update. lost: that of the difference between what the weights moved by and the update.
    """

    moved: int
    kept: int
    update: float
    lost: float

    @property
    def kept_share(self) -> float:
        """kept / moved; 0 where nothing moved."""
        return self.kept / self.moved if self.moved else 0.0

    @property
    def lost_share(self) -> float:
        """lost / update; 0 where there is no update."""
        return self.lost / self.update if self.update else 0.0


def measured(measures: Measures) -> Rounding:
    """The measures of a whole array."""
    return Rounding(measures.moved, measures.kept, math.sqrt(measures.update), math.sqrt(measures.lost))


def added(parts: Iterable[Measures]) -> Measures:
    """The measures of several parts of an array, in this order."""
    moved, kept, bad, update, lost = 0, 0, 0, 0.0, 0.0
    for part in parts:
        moved, kept, bad, update, lost = moved + part.moved, kept + part.kept, bad + part.bad, update + part.update, lost + part.lost
    return Measures(moved, kept, bad, update, lost)


def total(parts: Iterable[Rounding]) -> Rounding:
    """Several arrays as one."""
    parts = list(parts)
    norms = (math.sqrt(sum(value**2 for value in values)) for values in ([x.update for x in parts], [x.lost for x in parts]))
    return Rounding(sum(x.moved for x in parts), sum(x.kept for x in parts), *norms)


def stream_key(seed: int, name: str) -> int:
    """The key of the random numbers for an array: of seed and name alone, so that neither threads nor shards show in the result."""
    return int.from_bytes(hashlib.sha256(f"{seed}|{name}".encode()).digest()[:8], "little")


def unit_for(left: np.ndarray, right: np.ndarray) -> float:
    """A power of two that brings the entries of left right near 1 at most, so that their squares neither vanish nor overflow."""
    bound = float(np.abs(left).max(initial=0)) * float(np.abs(right).max(initial=0)) * max(left.shape[1], 1)
    return 2.0 ** -min(max(math.frexp(bound)[1], -100), 100) if 0 < bound < math.inf else 1.0
