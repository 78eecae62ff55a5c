"""Reductions: NumPy's own, but for the sum of squares, which needs no array in float64."""

import numpy as np

from ..reference.reduce import argmax, broadcast_to, max_grad, max_over, sum_over, sum_to
from ..runtime import jit, parallel_for
from .split import GRAIN

__all__ = ["argmax", "broadcast_to", "max_grad", "max_over", "sum_over", "sum_squares", "sum_to"]

BLOCK = 4096  # entries summed on their own, so that threads do not change the sum


@jit(reassociate=True)
def _sum_squares(start, stop, x, sums):
    for block in range(start, stop):
        part = x[block * BLOCK : (block + 1) * BLOCK]
        total = 0.0
        for i in range(part.size):
            total += np.float64(part[i]) * np.float64(part[i])
        sums[block] = total


def sum_squares(x):
    """Sum of squares of all entries, accumulated and returned in float64 (a Python float)."""
    x = np.ascontiguousarray(x).reshape(-1)
    sums = np.empty(-(-x.size // BLOCK))
    parallel_for(_sum_squares, sums.size, x, sums, grain=GRAIN // BLOCK)
    return float(np.sum(sums))
