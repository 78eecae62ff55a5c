"""How near a result is to what it should exactly be: for each module and in all, measured from the factors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from ..exchange.factors import Pair, frobenius, together
from ..exchange.factors import norm as norm_of
from .rounding import noise


@dataclass(frozen=True)
class Entry:
    """One module: the rank of the result (None for whole arrays), its relative Frobenius error, the energy kept, and the exact norm.

    error: ||result - exact|| / ||exact||, rounding to the dtype of the file included; inf where exact is 0 and the result is not. energy:
    ||result||^2 / ||exact||^2, which for the best approximation of a rank is 1 - error^2. norm: ||exact||.
    """

    rank: int | None
    error: float
    energy: float
    norm: float


@dataclass(frozen=True)
class Certificate:
    """What each module of a result is off by, and all of them together, as if they were one long vector."""

    modules: dict[str, Entry] = field(default_factory=dict)

    @property
    def norm(self) -> float:
        """The Frobenius norm of the exact result."""
        return math.hypot(*(entry.norm for entry in self.modules.values()))

    @property
    def error(self) -> float:
        """The relative Frobenius error of all modules together."""
        if any(math.isinf(entry.error) for entry in self.modules.values()):
            return math.inf
        whole = self.norm
        return math.hypot(*(entry.error * (entry.norm / whole) for entry in self.modules.values())) if whole else 0.0

    @property
    def energy(self) -> float:
        """The share of the energy of all modules together that is kept."""
        whole = self.norm
        return math.fsum(entry.energy * (entry.norm / whole) ** 2 for entry in self.modules.values()) if whole else 1.0

    @property
    def ranks(self) -> tuple[int, int]:
        """The least and the largest rank; (0, 0) where no module has one."""
        found = [entry.rank for entry in self.modules.values() if entry.rank is not None]
        return min(found, default=0), max(found, default=0)

    def to_json(self) -> dict[str, Any]:
        """The same as plain data for JSON, None in place of an infinite error."""
        modules = {name: {**asdict(entry), "error": _finite(entry.error)} for name, entry in self.modules.items()}
        return {"error": _finite(self.error), "energy": self.energy, "norm": self.norm, "modules": modules}


def measured(exact: Sequence[Pair], result: Sequence[Pair], rank: int) -> Entry:
    """The entry of a module from the factors of what it should be and of what it is, part by part.

    What is not above the rounding error of the factors' products in float64 counts as 0.
    """
    if not all(np.isfinite(factor).all() for pair in result for factor in pair):
        return Entry(rank, math.inf, math.inf, norm_of(exact))
    found = together(exact, result)
    norm, got = found.norms
    of_exact = sum(noise(pair) for pair in exact)
    norm = norm if norm > of_exact else 0.0
    difference = found.difference if found.difference > of_exact + sum(noise(pair) for pair in result) else 0.0
    return Entry(rank, _over(difference, norm), _over(got, norm) ** 2 if norm else 1.0, norm)


def measured_arrays(exact: Mapping[str, np.ndarray], result: Mapping[str, np.ndarray]) -> Entry:
    """The entry of a module that is whole arrays."""
    norm = math.hypot(*(frobenius(array) for array in exact.values()))
    got = math.hypot(*(frobenius(array) for array in result.values()))
    apart = math.hypot(*(frobenius(result[key].astype(np.float64) - array) for key, array in exact.items()))
    return Entry(None, _over(apart, norm), _over(got, norm) ** 2 if norm else 1.0, norm)


def _over(part: float, whole: float) -> float:
    return part / whole if whole else math.inf if part else 0.0


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
