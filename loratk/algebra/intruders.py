"""Intruder dimensions: leading singular vectors of a fine-tuned weight that are like none of the weight it was tuned from."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..errors import AnomalyError, ConfigError
from .rounding import Svd

LEADING, THRESHOLD = 10, 0.5
"""How many leading singular vectors are looked at, and the cosine below which one is an intruder: as PEFT has them."""


RESOLVED = 1e-7
"""Eigenvalues of W W^T from this share of the largest on have eigenvectors that rounding does not mix."""


@dataclass(frozen=True)
class Intruders:
    """The intruders among the leading singular vectors of W + update.

    positions: their numbers, from 1, the vector of the largest singular value. cosines: of each that was looked at the largest absolute
    cosine with a singular vector of W.
    """

    positions: list[int]
    cosines: list[float]

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self.positions)


def check_leading(leading: int, threshold: float) -> None:
    """Raises ConfigError for a number of vectors, or a cosine, that makes no sense."""
    if isinstance(leading, bool) or not isinstance(leading, int) or leading < 1:
        raise ConfigError(f"leading must be a whole number from 1 up, found {leading!r}")
    if not 0 < threshold <= 1:
        raise ConfigError(f"threshold must be a cosine above 0, up to 1, found {threshold!r}")


class Pretrained:
    """A weight (d, k) as it was before tuning, decomposed when it is first asked.

    Eigenvectors of W W^T, or W^T W if that is smaller, take a third of the time of the singular value decomposition. They are enough where
    no singular value is so small that its square is lost to rounding, or those that are cannot matter; elsewhere the weight is decomposed.
    """

    def __init__(self, weight: np.ndarray) -> None:
        """Raises AnomalyError for a weight that is not finite."""
        if not np.isfinite(weight).all():
            raise AnomalyError("the base's weight is not finite")
        largest = float(np.abs(weight).max(initial=0.0)) or 1.0
        self._weight, self._scale = weight.astype(np.float64) / largest, largest  # so that squares neither overflow nor vanish

    def intruders(self, update: Svd, *, leading: int = LEADING, threshold: float = THRESHOLD) -> Intruders:
        """The intruders that an update brings. Shuttleworth et al. 2024, algorithm 1.

        A singular vector of W + update counts as an intruder where its absolute cosine with every singular vector of W is below the
        threshold. The vectors of the outputs, in R^k, are compared: the left ones of a weight (out, in), as in the paper and in PEFT.
        """
        check_leading(leading, threshold)
        tuned = self._weight + (update.u * (update.s / self._scale)) @ update.v
        if not np.isfinite(tuned).all():
            raise AnomalyError("the update is too large beside the base's weight")
        cosines = [self._largest(vector) for vector in _leading(tuned, leading).T]
        return Intruders([place + 1 for place, cosine in enumerate(cosines) if cosine < threshold], cosines)

    def _largest(self, vector: np.ndarray) -> float:
        """The largest absolute cosine of a unit vector (k,) with a singular vector of outputs."""
        values, vectors, resolved = self._squared
        told = (
            vectors[:, resolved].T @ (self._weight @ vector) / np.sqrt(values[resolved]) if self._wide else vectors[:, resolved].T @ vector
        )
        most = float(np.abs(told).max(initial=0.0))
        if resolved.all() or 1.0 - float(told @ told) <= most**2:  # what is left is too little for a larger one
            return min(1.0, most)
        return min(1.0, float(np.abs(self._outputs @ vector).max(initial=0.0)))

    @property
    def _wide(self) -> bool:
        return self._weight.shape[0] < self._weight.shape[1]

    @cached_property
    def _squared(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Squared singular values, the vectors of the smaller side, and which of them rounding leaves alone."""
        values, vectors = np.linalg.eigh(_gram(self._weight))
        return values, vectors, values > RESOLVED * values[-1]

    @cached_property
    def _outputs(self) -> np.ndarray:
        """All singular vectors of outputs as rows, (min(d, k), k)."""
        return np.linalg.svd(self._weight, full_matrices=False)[2]


def _gram(matrix: np.ndarray) -> np.ndarray:
    return matrix @ matrix.T if matrix.shape[0] < matrix.shape[1] else matrix.T @ matrix


def _leading(matrix: np.ndarray, count: int) -> np.ndarray:
    """The leading singular vectors of outputs of a matrix (d, k): (k, count), or as many as there are."""
    values, vectors = np.linalg.eigh(_gram(matrix))
    values, vectors = values[::-1][:count], vectors[:, ::-1][:, :count]
    if not values[-1] > RESOLVED * values[0]:
        return np.linalg.svd(matrix, full_matrices=False)[2][:count].T
    return matrix.T @ vectors / np.sqrt(values) if matrix.shape[0] < matrix.shape[1] else vectors
