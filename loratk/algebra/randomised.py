"""The leading singular values and vectors of a dense matrix, as many as a rule needs, with an error that is measured and not estimated.

A random sketch with power iterations finds the range (Halko, Martinsson & Tropp 2011, algorithm 4.4), block after block until it is large
enough (as in their section 4.4, with what earlier blocks hold taken out), and the decomposition follows from it (their algorithm 5.1).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ..exchange.factors import Pair, frobenius
from .ranks import Rule
from .rounding import EPS, Svd, orthonormal

SMALL = 256
"""The smaller side of a matrix up to which all singular values are computed, which is as fast there."""
FIRST = 32
"""The rank that is tried first where a rule gives none."""
OVER = 12
"""Directions in the sketch beyond those that are kept: the last ones of a sketch are the least accurate."""
POWER = 2
"""Power iterations, which bring the kept directions near to the best ones where the spectrum falls slowly."""
BLOCK = 1 << 22
"""Numbers of a matrix whose residual is computed at once."""


def leading(matrix: np.ndarray, rule: Rule, rng: np.random.Generator) -> tuple[Svd, float]:
    """At least the singular values and vectors that a rule needs, of a matrix (d, k), float64; and the norm of what they leave out.

    What the first r of them leave out is then known exactly for each r: the values after r, and that norm, by Pythagoras. Falling back
    to all singular values where the rank needed is above half of what is possible.
    """
    least, whole = min(matrix.shape), frobenius(matrix)
    if not whole:
        return Svd(np.zeros((matrix.shape[0], 0)), np.zeros(0), np.zeros((0, matrix.shape[1]))), 0.0
    size = (FIRST if rule.rank is None or rule != Rule(rule.rank) else rule.rank) + OVER
    q = np.zeros((matrix.shape[0], 0))
    while least > SMALL and size <= least // 2:
        q = np.hstack([q, _range(matrix, q, size - q.shape[1], rng)])
        p, r = orthonormal(matrix.T @ q)
        u, s, v = np.linalg.svd(r.T)
        found, beyond = Svd(q @ u, s, v @ p.T), distance(matrix, (q, r.T @ p.T))
        if rule.choose([s], beyond=beyond) <= size - OVER or beyond <= EPS * whole:
            return found, beyond
        size *= 2
    u, s, v = np.linalg.svd(matrix, full_matrices=False)
    return Svd(u, np.where(s > max(matrix.shape) * EPS * s[0], s, 0.0), v), 0.0


def best_of(matrices: Sequence[np.ndarray], rule: Rule, rng: np.random.Generator, parts: int = 1) -> tuple[list[Pair], bool]:
    """The best pairs of one rank for all matrices, the parts of an update, by a rule, and whether its cap cut, as `truncation.best`."""
    found = [leading(np.asarray(matrix, np.float64), rule, rng) for matrix in matrices]
    spectra, beyond = [svd.s for svd, _ in found], math.hypot(*(rest for _, rest in found))
    rank = rule.choose(spectra, parts, beyond)
    return [svd.pair(rank) for svd, _ in found], rank < rule.needed(spectra, beyond)


def distance(matrix: np.ndarray, pair: Pair) -> float:
    """||matrix - A B||, a block of rows at a time: (d, k), (d, r), (r, k)."""
    a, b = (factor.astype(np.float64, copy=False) for factor in pair)
    rows = max(1, BLOCK // max(1, matrix.shape[1]))
    return math.hypot(*(frobenius(matrix[at : at + rows] - a[at : at + rows] @ b) for at in range(0, len(matrix), rows)))


def _range(matrix: np.ndarray, known: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """An orthonormal basis (d, size) of what the matrix mostly maps to, outside of what is known."""
    q = _outside(matrix @ rng.standard_normal((matrix.shape[1], size)), known)
    for _ in range(POWER):
        q = _outside(matrix @ orthonormal(matrix.T @ q)[0], known)
    return q


def _outside(vectors: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Orthonormal columns that span vectors without their part in a known basis; done twice, which is enough."""
    for _ in range(2 if known.shape[1] else 1):
        vectors = orthonormal(vectors - known @ (known.T @ vectors))[0]
    return vectors
