"""How large a rank has to be: by number, by ratio of singular values, by energy kept, by error allowed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import ConfigError

SLACK = 1e-12
"""How far a bound may be missed, relatively, by rounding: 0.9 of the energy of (3, 1) is reached by the first."""


@dataclass(frozen=True)
class Rule:
    """What decides a rank. Of `ratio`, `energy` and `error` the largest rank that one of them needs is taken, then `rank` is its cap.

    rank: no more than that many. ratio, (0, 1]: every singular value of at least that times the largest. energy, (0, 1]: the least rank
    that keeps this share of the squared singular values. error, [0, 1): the least rank whose relative Frobenius error is at most that.
    With none of them every singular value that is not 0. The rank is always at least 1. Raises ConfigError for values outside.
    """

    rank: int | None = None
    ratio: float | None = None
    energy: float | None = None
    error: float | None = None

    def __post_init__(self) -> None:
        if self.rank is not None and (isinstance(self.rank, bool) or not isinstance(self.rank, int | np.integer) or self.rank < 1):
            raise ConfigError(f"rank must be a whole number from 1 up, found {self.rank!r}")
        for name, inside, what in (
            ("ratio", lambda value: 0 < value <= 1, "above 0, up to 1"),
            ("energy", lambda value: 0 < value <= 1, "above 0, up to 1"),
            ("error", lambda value: 0 <= value < 1, "from 0 up, below 1"),
        ):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int | float | np.number) or not inside(value)):
                raise ConfigError(f"{name} must be a number {what}, found {value!r}")

    def needed(self, spectra: Sequence[np.ndarray], beyond: float = 0.0) -> int:
        """The rank that ratio, energy and error need, without the cap: one for all parts of an update, each with its falling values.

        beyond: the norm of what the spectra leave out, where only the leading values are known. A rank above their number says that more
        of them are needed.
        """
        values = _joined(spectra)
        largest = float(values.max(initial=0.0))
        if not largest:
            return 1
        tails = tail_norms(values / largest, beyond / largest)
        found = [0]
        if self.ratio is not None:
            count = int(np.count_nonzero((values >= self.ratio * largest * (1 - SLACK)) & (values > 0), axis=1).max())
            found.append(count + 1 if beyond and count == values.shape[1] else count)
        if self.energy is not None:
            lost = 0.0 if self.energy == 1 else math.sqrt(1 - self.energy + 2 * np.finfo(np.float64).eps)
            found.append(_first(tails, lost * float(tails[0])))
        if self.error is not None:
            found.append(_first(tails, self.error * float(tails[0]) * (1 + SLACK)))
        if self.ratio is None and self.energy is None and self.error is None:
            found.append(_first(tails, 0.0))
        return max(1, *found)

    def choose(self, spectra: Sequence[np.ndarray], parts: int = 1, beyond: float = 0.0) -> int:
        """The rank of each part under the cap, which counts the ranks of `parts` parts together (the groups of a convolution)."""
        rank = self.needed(spectra, beyond)
        return rank if self.rank is None else min(rank, max(1, int(self.rank) // parts))


def tail_norms(values: np.ndarray, beyond: float = 0.0) -> np.ndarray:
    """What each rank leaves out: falling singular values (parts, q) -> the norms (q + 1,) of all after the first 0, 1, ..., q.

    beyond: the norm of what is in none of the values.
    """
    squares = np.square(values).sum(axis=0)
    return np.hypot(np.sqrt(np.append(np.cumsum(squares[::-1])[::-1], 0.0)), beyond)


def lost(spectra: Sequence[np.ndarray], rank: int) -> float:
    """The relative Frobenius error of keeping the first `rank` singular values of each part; 0 for an update that is zero."""
    values = _joined(spectra)
    largest = float(values.max(initial=0.0))
    if not largest:
        return 0.0
    tails = tail_norms(values / largest)
    return float(tails[min(rank, len(tails) - 1)] / tails[0])


def _joined(spectra: Sequence[np.ndarray]) -> np.ndarray:
    """The spectra as rows of one array, short ones ending in zeros."""
    values = np.zeros((len(spectra), max((len(part) for part in spectra), default=0)))
    for row, part in zip(values, spectra, strict=True):
        row[: len(part)] = part
    return values


def _first(tails: np.ndarray, allowed: float) -> int:
    """The least rank that leaves out no more than allowed; one above all where none does."""
    enough = tails <= allowed
    return int(np.argmax(enough)) if enough.any() else len(tails)
