"""What a module of an adapter adds to its weight, whatever its method, as singular value decompositions of its parts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ..exchange import AdapterState, Base
from ..exchange.factors import frobenius
from ..exchange.others import KNOWN
from ..plugins import Registry
from .exact import BIASES, NEEDS_BASE, WHOLE, Exact, unknown
from .rounding import Svd, svd

Record = Mapping[str, Any]
NOISE = 1e-6
"""Directions whose singular value is below this share of the largest are rounding of factors in float32, and none of the spaces."""


STRUCTURE = ("shape", "groups", "experts", "kernel", "columns")
"""What must agree for two updates to be comparable, where both records say it."""


def disagreements(one: Record, two: Record) -> list[str]:
    """Why the updates of two records cannot be compared."""
    return [f"{key} {one[key]} and {two[key]}" for key in STRUCTURE if key in one and key in two and one[key] != two[key]]


@dataclass(frozen=True, eq=False)
class Update:
    """What is added to a weight, as parts that share no entry: one, or one for each group of a convolution and each expert of a stack."""

    parts: list[Svd]

    @cached_property
    def norm(self) -> float:
        """Its Frobenius norm."""
        return frobenius(self.values)

    @cached_property
    def values(self) -> np.ndarray:
        """The singular values of all parts together, falling."""
        return np.sort(np.concatenate([part.s for part in self.parts]))[::-1]

    @cached_property
    def spaces(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """For each part orthonormal bases of what it reads of the inputs (d, i) and writes to the outputs (k, i), without noise."""
        floor = NOISE * float(self.values.max(initial=0.0))
        counts = [int(np.count_nonzero(part.s > floor)) for part in self.parts]
        return [(part.u[:, :count], part.v[:count].T) for part, count in zip(self.parts, counts, strict=True)]

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """(d, k) of each part."""
        return [(len(part.u), part.v.shape[1]) for part in self.parts]


class Updates:
    """The updates of one adapter, a module at a time."""

    def __init__(self, state: AdapterState, registry: Registry, base: Base | None = None) -> None:
        self.state, self._registry, self._base = state, registry, base
        self._exact = Exact(state, registry, base)
        self._held, self.modules = self._exact.held, list(self._exact.modules)
        """Those that are updates: VeRA's shared matrices are none."""

    def __contains__(self, module: object) -> bool:
        return module in self._exact.modules

    def of(self, module: str, *, d: int = 0) -> Update:
        """What a module adds to its weight. `d`: the inputs, for a method (VeRA) that may not tell them.

        From the factors where the method has some, else from the dense difference. Raises LoratkError where that needs a base that is
        not given or lacks the module, or the method is not known.
        """
        record, update = self._exact.update(module, d=d)
        return _dense(update, record) if isinstance(update, np.ndarray) else Update([svd(pair) for pair in update])

    def needs_base(self, module: str) -> bool:
        """Whether what a module adds depends on the base's weight."""
        return self._exact.needs_base(module)

    def biases(self) -> list[str]:
        """The modules that change a bias too, or alone."""
        return [name for name in self.modules if not BIASES.isdisjoint(self._held[name])]

    def obstacle(self, module: str) -> str | None:
        """Why nothing can be told of an update, as far as that shows before it is computed."""
        record, held = self.state.modules[module], self._held[module]
        if self._base is None and self.needs_base(module):
            return NEEDS_BASE
        if BIASES.issuperset(held):
            return "it changes a bias alone, no weight"
        known = {*KNOWN, *self._registry.methods, *WHOLE}
        return None if record["method"] in known else unknown(record["method"], self._registry)


def _dense(matrix: np.ndarray, record: Record) -> Update:
    """A matrix (d, k), or a stack of them, by its decomposition, group by group."""
    matrices = list(matrix) if "experts" in record else np.split(matrix, record.get("groups", 1), axis=-1)
    return Update([Svd(*np.linalg.svd(part.astype(np.float64, copy=False), full_matrices=False)) for part in matrices])
