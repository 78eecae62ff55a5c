"""What the singular values of an update say: how many directions it really uses, and whether one of them drowns the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .factors import Pair, singular_values

SPIKE = 0.9
"""The share of the energy from which on a single direction counts as a spike, in updates of more than one."""


@dataclass(frozen=True)
class Spectrum:
    """Singular values, falling, and what follows from them; energies are their squares.

    effective_rank: e to the entropy of the values as shares of their sum (Roy & Vetterli 2007), from 1 up to their number; 0 for an update
    that is zero. first: the share of the energy in the largest. half, most: how many of the largest hold 50 % and 99 % of the energy.
    spike: whether `first` is at least SPIKE though there are more.
    """

    values: list[float]
    effective_rank: float
    first: float
    half: int
    most: int
    spike: bool


def spectrum(pairs: Sequence[Pair]) -> Spectrum | None:
    """The spectrum of an update given by its factors; None where it is not finite."""
    values = singular_values(pairs)
    return spectrum_of(values) if np.isfinite(values).all() else None


def spectrum_of(values: np.ndarray) -> Spectrum:
    """The spectrum of an update given by its singular values, falling and finite."""
    if not values.size or not values[0]:
        return Spectrum(values.tolist(), 0.0, 0.0, 0, 0, False)
    shares, energy = values / values.sum(), (values / values[0]) ** 2
    energy /= energy.sum()
    entropy = -np.sum(shares * np.log(shares, out=np.zeros_like(shares), where=shares > 0))
    half, most = (int(np.searchsorted(np.cumsum(energy), share * (1 - 1e-12))) + 1 for share in (0.5, 0.99))
    return Spectrum(
        values.tolist(), float(np.exp(entropy)), float(energy[0]), half, most, bool(len(values) > 1 and energy[0] >= SPIKE)
    )  # fmt: skip
