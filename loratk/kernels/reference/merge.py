"""A weight plus a low-rank update, rounded to what the weight is stored as, and what the rounding did.

What is stored is of a kind: "bfloat16" and "float16" by their bits (uint16), "float32" and "float64" as they are. Products and sums are
float32 for the two halves and float64 for the others, and float64 for all where rounding is stochastic.
"""

from typing import NamedTuple

import numpy as np

DIGITS = {"bfloat16": 7, "float16": 10, "float32": 23}
"""Bits of the fraction of a number."""
LEAST = {"bfloat16": -126, "float16": -14, "float32": -126}
"""The exponent of the smallest number with all of them."""
MOST = {"bfloat16": 127, "float16": 15, "float32": 127}
"""The exponent of the largest."""
LARGEST = {kind: 2.0 ** (MOST[kind] + 1) - 2.0 ** (MOST[kind] - DIGITS[kind]) for kind in DIGITS}
EDGE = {kind: 2.0 ** (MOST[kind] + 1) - 2.0 ** (MOST[kind] - DIGITS[kind] - 1) for kind in DIGITS}
"""From here on rounding to nearest gives infinity."""

GOLDEN, MIX1, MIX2 = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


class Measures(NamedTuple):
    """What became of some entries of a weight under an update.

    moved: those whose update is not zero. kept: those of them that came out as they were. bad: those that are not finite now.
    update, lost: the sums of the squares of the update, and of what rounding added to it, each times a square of `unit`.
    """

    moved: int
    kept: int
    bad: int
    update: float
    lost: float


def sums_dtype(kind, stochastic=False):
    """The dtype of products and sums."""
    return np.dtype(np.float32 if kind in ("bfloat16", "float16") and not stochastic else np.float64)


def widened(stored, kind, dtype):
    """What is stored, as numbers of a dtype."""
    if kind == "bfloat16":
        return (stored.astype(np.uint32) << np.uint32(16)).view(np.float32).astype(dtype)
    return (stored.view(np.float16) if kind == "float16" else stored).astype(dtype)


def narrowed(numbers, kind):
    """Numbers as they are stored, rounded to nearest, ties to even; bfloat16 of float32 alone. NaN may become anything."""
    if kind != "bfloat16":
        return numbers.astype(np.float16).view(np.uint16) if kind == "float16" else numbers.astype(kind)
    bits = numbers.view(np.uint32)
    return ((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)).astype(np.uint16)


def uniform(key, first, count):
    """Entries first to first + count of a stream of 32-bit numbers under a 64-bit key: (count,) uint64.

    SplitMix64 (Steele, Lea & Flood 2014): a function of key and place alone, so whoever computes an entry finds the same.
    """
    with np.errstate(over="ignore"):
        z = np.uint64(key) + (np.arange(count, dtype=np.uint64) + np.uint64(first + 1)) * GOLDEN
        z = (z ^ (z >> np.uint64(30))) * MIX1
        z = (z ^ (z >> np.uint64(27))) * MIX2
        return (z ^ (z >> np.uint64(31))) >> np.uint64(32)


def stochastic(numbers, kind, draws):
    """Finite float64 numbers rounded to one of the two neighbours of a kind: float64 (n,), uint64 below 2^32 (n,) -> float64 (n,).

    The nearer the neighbour, the likelier, so that the expectation is the number, to 2^-32 of their distance (Gupta et al. 2015, section
    3). No number becomes infinite that rounding to nearest leaves finite.
    """
    exponent = np.maximum(((numbers.view(np.int64) >> 52) & 0x7FF) - 1023, LEAST[kind])
    with np.errstate(over="ignore", invalid="ignore"):
        scaled = np.ldexp(numbers, DIGITS[kind] - exponent)
        below = np.floor(scaled)
        up = draws < (scaled - below) * 2.0**32
        rounded = np.ldexp(below + up, exponent - DIGITS[kind])
    return np.where(np.abs(numbers) < EDGE[kind], np.clip(rounded, -LARGEST[kind], LARGEST[kind]), numbers)


def merge_rows(w, left, right, *, kind, unit=1.0, key=None, first=0):
    """w + left right as it is stored, and the measures: (m, n), (m, r), (r, n) -> (m, n), Measures.

    left and right have the dtype of the sums. With a `key` rounding is stochastic; `first` is then the place of the first entry of w in
    its array. Numbers that are not finite are counted, and stored as anything.
    """
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        old, delta = widened(w, kind, left.dtype), left @ right
        total = old + delta
        bad = ~np.isfinite(total)
        if key is not None:
            total = stochastic(total.reshape(-1), kind, uniform(key, first, total.size)).reshape(total.shape)
            total = total if kind == "float32" else total.astype(np.float32)
        out = narrowed(total, kind)
        new = widened(out, kind, left.dtype)
        bad |= ~np.isfinite(new)
        lost = (new - old) - delta
        moved = delta != 0
        squares = [float(np.square(x.astype(np.float64) * unit).sum()) for x in (delta, lost)]
        return out, Measures(*(int(np.count_nonzero(x)) for x in (moved, moved & (new == old), bad)), *squares)
