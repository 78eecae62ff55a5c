"""Moving elements without computing: reshape, transpose, indexing, joining, gathering rows, scattering."""

import numpy as np

__all__ = ["concat", "gather_rows", "getitem", "getitem_grad", "reshape", "scatter", "scatter_add_rows", "transpose"]


def reshape(x, *, shape):
    """x with another shape; one entry may be -1."""
    return np.reshape(x, shape)


def transpose(x, *, axes):
    """x with its axes permuted."""
    return np.transpose(x, axes)


def getitem(x, *, index):
    """x[index] for integers, slices, `...` and None (basic indexing)."""
    return np.asarray(x[index])


def getitem_grad(g, *, index, shape):
    """Zeros of `shape` with g at [index]."""
    out = np.zeros(shape, g.dtype)
    out[index] = g
    return out


def concat(*arrays, axis):
    """Arrays joined along an axis."""
    return np.concatenate(arrays, axis=axis)


def gather_rows(w, index):
    """w[index]: (v, k), integers (...,) in [0, v) -> (..., k)."""
    return w[index]


def scatter_add_rows(g, index, *, rows):
    """Sum of the rows of g by index, in their order: (..., k), integers (...,) -> (rows, k)."""
    out = np.zeros((rows, g.shape[-1]), g.dtype)
    np.add.at(out, index.reshape(-1), g.reshape(-1, g.shape[-1]))
    return out


def scatter(x, index, *, size):
    """Zeros (size,) with x at index, each of which occurs once: (n,), integers (n,) in [0, size) -> (size,)."""
    out = np.zeros(size, x.dtype)
    out[index] = x
    return out
