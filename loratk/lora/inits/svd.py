"""Singular value decompositions for initialisations: exact or by random projections, in float64, with settled signs."""

from collections.abc import Iterator
from typing import Any

import numpy as np

OVERSAMPLING = 10


def svd(
    matrix: np.ndarray, rank: int, niter: int | None = None, rng: np.random.Generator | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """U (d, m), S (m,) falling, V^T (m, k) of a matrix (d, k): m = min(d, k), or with `niter` at least `rank`, by random projections.

    Those are of twice the rank and 10, sharpened `niter` times (Halko, Martinsson & Tropp 2011, algorithms 4.4 and 5.1). Of each column
    of U the entry of largest magnitude is positive, so that equal matrices have equal directions whatever computed them.
    """
    matrix = np.asarray(matrix, np.float64)
    width = min(2 * rank + OVERSAMPLING, *matrix.shape)
    if niter is None or rng is None or width == min(matrix.shape):
        return settled(*np.linalg.svd(matrix, full_matrices=False))
    q, _ = np.linalg.qr(matrix @ rng.standard_normal((matrix.shape[1], width)))
    for _ in range(niter):
        q, _ = np.linalg.qr(matrix.T @ q)
        q, _ = np.linalg.qr(matrix @ q)
    u, s, v = np.linalg.svd(q.T @ matrix, full_matrices=False)
    return settled(q @ u, s, v)


def settled(u: np.ndarray, s: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A decomposition with the signs of `svd`."""
    signs = np.where(u[np.abs(u).argmax(axis=0), np.arange(u.shape[1])] < 0, -1.0, 1.0)
    return u * signs, s, signs[:, None] * v


def halves(u: np.ndarray, s: np.ndarray, v: np.ndarray, scaling: float, largest: float) -> tuple[np.ndarray, np.ndarray]:
    """A = U sqrt(S/scaling), B = sqrt(S/scaling) V^T: (d, r), (r, k).

    A singular value that is 0 beside the `largest` would leave both at 0, where they stay for ever: there A is the bare direction.
    """
    root = np.sqrt(s / scaling)
    none = s <= largest * np.finfo(np.float64).eps * max(len(u), v.shape[1])
    return u * np.where(none, 1.0, root), np.where(none, 0.0, root)[:, None] * v


def niter_faults(init: str, value: Any) -> Iterator[str]:
    """What is wrong with the option `niter`."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
        yield f"niter of the init {init!r} must be a whole number of at least 0, or None for the exact decomposition, found {value!r}"


def scaling_faults(init: str, scaling: float) -> Iterator[str]:
    """A scaling that cannot be divided by."""
    if scaling <= 0:
        yield f"the init {init!r} divides by the scaling, which is {scaling:g}; give an alpha above 0"
