"""The nearest low-rank factors of a matrix that is given some columns at a time: by its singular values, all of them or the leading ones.

Small matrices are decomposed whole. Of large ones the leading singular values come from a random sketch with power iterations (Halko,
Martinsson & Tropp 2011, algorithm 4.4 with 5.1), in passes over the columns: the matrix is never held.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from .fused import Fused
from .ranks import Rule
from .rounding import Svd, orthonormal

WHOLE = 1024
"""The smaller side of a matrix up to which it is decomposed whole."""
COUNT = 64
"""The rank that is tried first where no rule for ranks gives one."""
POWER = 2
"""Power iterations: a spectrum that falls slowly, as that of a sparse matrix does, needs them."""


class Block:
    """A block of columns of a merged delta: all, or those of one group."""

    def __init__(self, fused: Fused, start: int, stop: int) -> None:
        self._fused, self._start, self.d, self.k = fused, start, fused.d, stop - start

    def columns(self) -> Iterator[tuple[slice, np.ndarray]]:
        """Its columns, some at a time, and where they belong."""
        for place, block in self._fused.columns():
            first, last = max(place.start, self._start), min(place.stop, self._start + self.k)
            if first < last:
                yield slice(first - self._start, last - self._start), block[:, first - place.start : last - place.start]

    def matrix(self) -> np.ndarray:
        """All of it, (d, k)."""
        return self._fused.matrix()[:, self._start : self._start + self.k]

    def times(self, right: np.ndarray) -> np.ndarray:
        """M right: (k, l) -> (d, l)."""
        total = np.zeros((self.d, right.shape[1]))
        for place, block in self.columns():
            total += block @ right[place]
        return total

    def turned_times(self, left: np.ndarray) -> np.ndarray:
        """M^T left: (d, l) -> (k, l)."""
        return np.vstack([block.T @ left for _, block in self.columns()])

    @property
    def energy(self) -> float:
        """The squared Frobenius norm."""
        return float(sum(np.vdot(block, block) for _, block in self.columns()))


def nearest(blocks: Sequence[Block], rule: Rule, generator: Callable[[], np.random.Generator], parts: int) -> list[Svd]:
    """The leading singular values and vectors of each block, as many as a rule needs whose cap counts the ranks of `parts` blocks together.

    With a cap alone that many are computed; else twice as many until the rule says that they are enough, and at last all.
    """
    least = min(min(block.d, block.k) for block in blocks)
    if least <= WHOLE:
        return [_whole(block, rule.rank) for block in blocks]
    alone = rule == Rule(rule.rank)
    count = max(1, rule.rank // parts) if alone and rule.rank else COUNT
    while True:
        size = count + max(16, count // 2)
        if size > least // 2:
            return [_whole(block, rule.rank) for block in blocks]
        found = [_leading(block, size, generator()) for block in blocks]
        spectra = [_completed(svd.s, block) for svd, block in zip(found, blocks, strict=True)]
        if alone or rule.choose(spectra, parts) <= count:
            return found
        count *= 2


def _whole(block: Block, cap: int | None) -> Svd:
    """All singular values, and the vectors of those under the cap."""
    u, s, v = np.linalg.svd(block.matrix(), full_matrices=False)
    return Svd(u, s, v) if cap is None or cap >= len(s) else Svd(u[:, :cap].copy(), s, v[:cap].copy())


def _leading(block: Block, size: int, rng: np.random.Generator) -> Svd:
    """About the leading `size` singular values and vectors."""
    q = orthonormal(block.times(rng.standard_normal((block.k, size))))[0]
    for _ in range(POWER):
        q = orthonormal(block.times(orthonormal(block.turned_times(q))[0]))[0]
    p, r = orthonormal(block.turned_times(q))
    u, s, v = np.linalg.svd(r.T)
    return Svd(q @ u, s, v @ p.T)


def _completed(values: np.ndarray, block: Block) -> np.ndarray:
    """A spectrum with the energy beyond the values that are known in values of the same size as the last one, the largest they can be."""
    rest, last = max(block.energy - float(np.vdot(values, values)), 0.0), float(values[-1])
    if not last or rest <= 1e-14 * float(np.vdot(values, values)):
        return values
    missing = min(block.d, block.k) - len(values)
    each = max(1, min(missing, int(rest / last**2)))
    return np.append(values, np.full(each, min(last, (rest / each) ** 0.5)))
