"""Arrays that are made as a whole: updates that are no plain products, and arrays in another dtype."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..exchange.transform import round_bfloat16
from ..io.bfloat16 import to_bits
from ..kernels.reference.merge import Measures, stochastic, uniform
from .files import plain, stored_dtype
from .rounding import KINDS

BLOCK = 1 << 18
"""Numbers that are rounded and measured at a time."""


def rounded(numbers: np.ndarray, dtype: str, key: int | None = None, first: int = 0) -> np.ndarray:
    """Numbers as a dtype stores them, rounded to nearest, ties to even, or with a key by chance: (n,) of any kind -> (n,).

    `first` is the place of the first in its array.
    """
    kind = KINDS[dtype]
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        if key is not None and kind != "float64":
            numbers = stochastic(numbers.astype(np.float64), kind, uniform(key, first, numbers.size))
        return to_bits(round_bfloat16(numbers)) if dtype == "BF16" else numbers.astype(kind)


def changed(own: np.ndarray, total: np.ndarray, dtype: str, key: int | None = None) -> tuple[np.ndarray, Measures]:
    """An array with its update, in float64, as a dtype stores it, and what rounding did, against `own` as the dtype would store it."""
    out = np.empty(total.shape, stored_dtype(dtype))
    flat, wide, before = out.reshape(-1), total.reshape(-1), np.ascontiguousarray(own).reshape(-1)
    counts, squares = [0, 0, 0], [0.0, 0.0]
    for at in range(0, wide.size, BLOCK):
        part = slice(at, at + BLOCK)
        flat[part] = rounded(wide[part], dtype, key, at)
        new, old = _wide(flat[part], dtype), _wide(rounded(before[part], dtype), dtype)
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            delta = wide[part] - before[part]
            lost = (new - old) - delta
            moved = delta != 0
            for number, found in enumerate((moved, moved & (new == old), ~np.isfinite(new))):
                counts[number] += int(np.count_nonzero(found))
            squares = [square + float(np.square(x).sum()) for square, x in zip(squares, (delta, lost), strict=True)]
    return out, Measures(*counts, *squares)


def cast(dtype: str, to: str, key: int | None = None) -> Callable[[np.ndarray], tuple[np.ndarray, Measures | None]]:
    """What makes of an array that is stored as one dtype that of another; only numbers that were finite and are not now count as bad."""

    def make(stored: np.ndarray) -> tuple[np.ndarray, Measures | None]:
        own = plain(stored, dtype)
        out = np.empty(own.shape, stored_dtype(to))
        flat, numbers, bad = out.reshape(-1), np.ascontiguousarray(own).reshape(-1), 0
        for at in range(0, numbers.size, BLOCK):
            part = slice(at, at + BLOCK)
            flat[part] = rounded(numbers[part], to, key, at)
            bad += int(np.count_nonzero(np.isfinite(numbers[part]) & ~np.isfinite(plain(flat[part], to))))
        return out, Measures(0, 0, bad, 0.0, 0.0) if bad else None

    return make


def _wide(stored: np.ndarray, dtype: str) -> np.ndarray:
    return plain(stored, dtype).astype(np.float64)
