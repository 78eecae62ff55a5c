"""Angles between subspaces, and how much of one lies in another, from orthonormal bases: O(d i j), nothing of size (d, d)."""

from __future__ import annotations

import numpy as np

from ..exchange.factors import triangle


def principal_angles(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The principal angles between the spans of orthonormal columns, in radians, rising: (d, i), (d, j) -> (min(i, j),).

    Bjorck & Golub 1973: large angles by their cosines, the singular values of left^T right; small ones by their sines, those of what the
    smaller space has outside of the larger, since the cosine of an angle below 1e-8 is 1 in float64.
    """
    if left.shape[1] < right.shape[1]:
        left, right = right, left
    if not right.shape[1]:
        return np.zeros(0)
    inner = left.T @ right
    cosines = np.linalg.svd(inner, compute_uv=False)
    sines = np.linalg.svd(triangle(right - left @ inner), compute_uv=False)[::-1]
    small = cosines**2 >= 0.5
    return np.where(small, np.arcsin(np.clip(sines, 0.0, 1.0)), np.arccos(np.clip(cosines, 0.0, 1.0)))


def subspace_similarity(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """phi(i, j) for the spans of the first i and j of orthonormal columns: (d, I), (d, J) -> (I, J), from 0 (orthogonal) to 1 (contained).

    phi(i, j) = ||left[:, :i]^T right[:, :j]||_F^2 / min(i, j), Hu et al. 2021, eq. 4: 1 less the normalised Grassmann distance.
    """
    shared = shared_energy(left, right)
    least = np.minimum.outer(np.arange(1, shared.shape[0] + 1), np.arange(1, shared.shape[1] + 1))
    return np.asarray(shared / least)


def shared_energy(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """||left[:, :i]^T right[:, :j]||_F^2 for each i and j, the sum of the squared cosines: (d, I), (d, J) -> (I, J)."""
    return np.asarray(np.cumsum(np.cumsum((left.T @ right) ** 2, axis=0), axis=1))
