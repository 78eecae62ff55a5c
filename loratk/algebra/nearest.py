"""The nearest low-rank factors of merged deltas: of one in memory as of any matrix, of a larger one in passes over its columns.

The leading singular values of what is not held come from a random sketch with power iterations, as in `randomised`; the sketch is begun
anew where it turns out too small, for a pass over the columns makes the delta anew and costs more than the sketch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from ..exchange.factors import Pair
from .fused import Fused
from .randomised import FIRST, OVER, POWER, best_of
from .ranks import Rule
from .rounding import Svd, orthonormal


def nearest(results: Sequence[Fused], rule: Rule, rng: np.random.Generator, parts: int) -> list[Pair]:
    """The best pairs of one rank for all parts of all results, by a rule whose cap counts the ranks of the `parts` of one together."""
    blocks = [Block(one, start, start + one.k // parts) for one in results for start in range(0, one.k, one.k // parts)]
    if all(one.held for one in results):
        return best_of([block.matrix() for block in blocks], rule, rng, parts)[0]
    least = min(min(block.d, block.k) for block in blocks)
    rank = FIRST if rule.rank is None or rule != Rule(rule.rank) else max(1, rule.rank // parts)
    while rank + OVER <= least // 2:
        found = [_leading(block, rank + OVER, rng) for block in blocks]
        spectra, beyond = [svd.s for svd in found], math.hypot(*(_distance(*pair) for pair in zip(blocks, found, strict=True)))
        if (chosen := rule.choose(spectra, parts, beyond)) <= rank:
            return [svd.pair(chosen) for svd in found]
        rank *= 2
    return best_of([block.matrix() for block in blocks], rule, rng, parts)[0]


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


def _leading(block: Block, size: int, rng: np.random.Generator) -> Svd:
    """About the leading `size` singular values and vectors (Halko, Martinsson & Tropp 2011, algorithms 4.4 and 5.1)."""
    q = orthonormal(block.times(rng.standard_normal((block.k, size))))[0]
    for _ in range(POWER):
        q = orthonormal(block.times(orthonormal(block.turned_times(q))[0]))[0]
    p, r = orthonormal(block.turned_times(q))
    u, s, v = np.linalg.svd(r.T)
    return Svd(q @ u, s, v @ p.T)


def _distance(block: Block, svd: Svd) -> float:
    """The norm of what a decomposition leaves out."""
    a = svd.u * svd.s
    return math.hypot(*(float(np.linalg.norm(columns - a @ svd.v[:, place])) for place, columns in block.columns()))
