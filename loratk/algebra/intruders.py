"""Intruder dimensions: leading singular vectors of a fine-tuned weight that are like none of the weight it was tuned from."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..errors import AnomalyError, ConfigError
from .rounding import Svd

LEADING, THRESHOLD = 10, 0.5
"""How many leading singular vectors are looked at, and the cosine below which one is an intruder: as PEFT has them."""


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
    """A weight (d, k) as it was before tuning."""

    def __init__(self, weight: np.ndarray) -> None:
        """Raises AnomalyError for a weight that is not finite."""
        if not np.isfinite(weight).all():
            raise AnomalyError("the base's weight is not finite")
        self._weight = weight.astype(np.float64)

    @cached_property
    def outputs(self) -> np.ndarray:
        """Its singular vectors of the outputs as rows, (min(d, k), k)."""
        return np.linalg.svd(self._weight, full_matrices=False)[2]

    def intruders(self, update: Svd, *, leading: int = LEADING, threshold: float = THRESHOLD) -> Intruders:
        """The intruders that an update brings. Shuttleworth et al. 2024, algorithm 1.

        A singular vector of W + update counts as an intruder where its absolute cosine with every singular vector of W is below the
        threshold. The vectors of the outputs, in R^k, are compared: the left ones of a weight (out, in), as in the paper and in PEFT.
        """
        check_leading(leading, threshold)
        tuned = np.linalg.svd(self._weight + (update.u * update.s) @ update.v, full_matrices=False)[2][:leading]
        cosines = np.abs(tuned @ self.outputs.T).max(axis=1)
        return Intruders([place + 1 for place, cosine in enumerate(cosines) if cosine < threshold], cosines.tolist())
