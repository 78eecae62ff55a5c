"""Moving elements: NumPy's views and copies; gathering rows on several threads, and adding rows up by index."""

import numpy as np

from ..memory import empty
from ..reference.shape import concat, getitem, getitem_grad, reshape, scatter, transpose
from ..runtime import jit, parallel_for
from .split import GRAIN, row_grain, row_index

__all__ = ["concat", "gather_rows", "getitem", "getitem_grad", "reshape", "scatter", "scatter_add_rows", "transpose"]


def gather_rows(w, index):
    """w[index]: (v, k), integers (...,) in [0, v) -> (..., k)."""
    k = w.shape[1]
    if index.size * k < 2 * GRAIN or not w.flags.c_contiguous:
        return w[index]
    rows, out = row_index(index, len(w)), empty((index.size, k), w.dtype)

    def take(start, stop):
        np.take(w, rows[start:stop], axis=0, out=out[start:stop], mode="clip")  # checked above; "raise" would make a copy

    parallel_for(take, index.size, grain=row_grain(k))
    return out.reshape(*index.shape, k)


@jit
def _scatter_add_rows(start, stop, g, index, out):
    for i in range(index.size):
        row, result = g[i, start:stop], out[index[i], start:stop]
        for j in range(row.size):
            result[j] += row[j]


def scatter_add_rows(g, index, *, rows):
    """Sum of the rows of g by index, in their order: (..., k), integers (...,) -> (rows, k)."""
    k = g.shape[-1]
    index, out = row_index(index, rows), np.zeros((rows, k), g.dtype)
    parallel_for(_scatter_add_rows, k, np.ascontiguousarray(g).reshape(index.size, k), index, out, grain=row_grain(index.size))
    return out
