"""Products with a matrix of few entries, sample beside sample: an entry moves a strip of one input's samples to one output's.

A thread takes some samples and all entries, in their order, so the bits do not depend on the thread count.
"""

import numpy as np

from ..memory import empty
from ..runtime import jit, parallel_for
from .split import GRAIN

__all__ = ["sparse_matmul", "sparse_matmul_t", "sparse_values_grad"]


@jit
def _moved(start, stop, x, values, source, target, out):
    for e in range(values.size):
        value, given, result = values[e], x[source[e], start:stop], out[target[e], start:stop]
        for s in range(given.size):
            result[s] += value * given[s]


def _product(x, values, source, target, size):
    """Of each sample, the sum of its entries `source` times the values, at `target`: (n, d) -> (n, size)."""
    n = len(x)
    across, out = np.ascontiguousarray(x.T), np.zeros((size, n), x.dtype)
    parallel_for(_moved, n, across, np.ascontiguousarray(values), source, target, out, grain=max(16, GRAIN // max(1, values.size)))
    return np.ascontiguousarray(out.T)


def sparse_matmul(x, values, index, *, k):
    """x S: (n, d), (m,), integers (m,) in [0, d k), rising -> (n, k)."""
    rows, columns = places(index, x.shape[1], k)
    return _product(x, values, rows, columns, k)


def sparse_matmul_t(g, values, index, *, d):
    """g S^T: (n, k), (m,), integers (m,) in [0, d k), rising -> (n, d)."""
    rows, columns = places(index, d, g.shape[1])
    return _product(g, values, columns, rows, d)


@jit(reassociate=True)
def _dots(start, stop, x, g, rows, columns, out):
    for e in range(start, stop):
        one, two = x[rows[e]], g[columns[e]]
        total = out.dtype.type(0)
        for s in range(one.size):
            total += one[s] * two[s]
        out[e] = total


def sparse_values_grad(x, g, index):
    """The entries of x^T g at the places `index`: (n, d), (n, k), integers (m,) in [0, d k), rising -> (m,)."""
    rows, columns = places(index, x.shape[1], g.shape[1])
    out = empty(rows.shape, x.dtype)
    grain = max(1, GRAIN // max(1, len(x)))
    parallel_for(_dots, rows.size, np.ascontiguousarray(x.T), np.ascontiguousarray(g.T), rows, columns, out, grain=grain)
    return out


def places(index, d, k):
    """Rows and columns. Raises IndexError outside [0, d k): compiled loops would write anywhere."""
    if index.size and not 0 <= index.min() <= index.max() < d * k:
        raise IndexError(f"Places in a ({d}, {k}) matrix must lie in [0, {d * k}), found {index.min()} to {index.max()}.")
    rows, columns = np.divmod(index, k)
    return rows, columns
