"""How often two updates pull an entry of the weight in opposite directions: counted where it is small, else estimated from a sample."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from zlib import crc32

import numpy as np

from .updates import Update

SMALL = 1 << 18
"""Entries up to which all are looked at."""
SAMPLE = 1 << 15
"""Entries drawn of a larger update: a standard error of at most 0.28 %."""
ROUNDING = 64 * float(np.finfo(np.float64).eps)
"""Entries up to this share of the largest singular value are rounding."""


@dataclass(frozen=True)
class SignConflicts:
    """The share of the entries where one update is positive and the other negative; entries where either is 0 are no conflict.

    entries: how many were looked at, of `total`. error: the standard error of the share, 0 where all were looked at.
    """

    share: float
    error: float
    entries: int
    total: int

    @property
    def exact(self) -> bool:
        """Whether all entries were looked at."""
        return self.entries == self.total


def sign_samples(updates: Sequence[Update], module: str, seed: int = 0) -> list[np.ndarray]:
    """The signs of the same entries of several updates of one shape, all of them or SAMPLE, drawn by the seed and the module's name.

    With replacement, each entry as likely as any other, so that the error of the share is that of independent draws.
    """
    shapes = updates[0].shapes
    sizes = [d * k for d, k in shapes]
    if sum(sizes) <= SMALL:
        return [np.concatenate([_signs(update, part).ravel() for part in range(len(shapes))]) for update in updates]
    rng = np.random.default_rng([seed, crc32(module.encode())])
    places = np.sort(rng.integers(0, sum(sizes), SAMPLE))
    ends = np.cumsum(sizes)
    signs: list[list[np.ndarray]] = [[] for _ in updates]
    for part, (end, size, (_, k)) in enumerate(zip(ends, sizes, shapes, strict=True)):
        rows, columns = np.divmod(places[(places >= end - size) & (places < end)] - (end - size), k)
        for update, found in zip(updates, signs, strict=True):
            found.append(_signs(update, part, rows, columns))
    return [np.concatenate(found) for found in signs]


def conflicts(one: np.ndarray, two: np.ndarray, total: int) -> SignConflicts:
    """The share of opposite signs among those of the same entries, of a weight with `total` of them."""
    share = float(np.mean(one * two < 0)) if len(one) else 0.0
    exact = len(one) == total
    return SignConflicts(share, 0.0 if exact else math.sqrt(share * (1 - share) / len(one)), len(one), total)


def _signs(update: Update, part: int, rows: np.ndarray | None = None, columns: np.ndarray | None = None) -> np.ndarray:
    """Of all entries of a part, or those at the places. What is not above the rounding of the product counts as 0, as it mostly was."""
    held = update.parts[part]
    if rows is None or columns is None:
        values = (held.u * held.s) @ held.v
    else:
        left, right = held.u * held.s, held.v.T
        blocks = np.array_split(np.arange(len(rows)), max(1, len(rows) * len(held.s) >> 20))
        values = np.concatenate([np.einsum("nr,nr->n", left[rows[block]], right[columns[block]]) for block in blocks])
    return np.asarray(np.sign(np.where(np.abs(values) > ROUNDING * held.s.max(initial=0.0), values, 0.0)))
