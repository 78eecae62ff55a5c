"""Sums, extremes, and the undoing of a broadcast."""

import numpy as np

__all__ = ["argmax", "broadcast_to", "max_grad", "max_over", "sum_over", "sum_squares", "sum_to"]


def sum_over(x, *, axis=None, keepdims=False):
    """Sum over one axis, a tuple of axes, or all of them (None, giving a 0-d array)."""
    return np.asarray(np.sum(x, axis=axis, keepdims=keepdims))


def max_over(x, *, axis=None, keepdims=False):
    """Maximum over one axis, a tuple of axes, or all; NaN wins; no element is an error."""
    return np.asarray(np.max(x, axis=axis, keepdims=keepdims))


def max_grad(g, x, y, *, axis=None):
    """Gradient of `max_over` (g and y with kept axes): shared equally among the entries that attain the maximum."""
    hit = x == y
    return (g * hit / np.sum(hit, axis=axis, keepdims=True)).astype(x.dtype)


def argmax(x, *, axis=-1):
    """Index (int64) of the first maximum along an axis."""
    return np.asarray(np.argmax(x, axis=axis))


def sum_to(x, *, shape):
    """Sum x down to `shape`, from which it was broadcast: the derivative of broadcasting."""
    extra = x.ndim - len(shape)
    axes = tuple(range(extra)) + tuple(i + extra for i, size in enumerate(shape) if size == 1 and x.shape[i + extra] != 1)
    return np.sum(x, axis=axes, keepdims=True).reshape(shape) if axes else x


def broadcast_to(x, *, shape):
    """x repeated to `shape`, as a new array."""
    return np.array(np.broadcast_to(x, shape))


def sum_squares(x):
    """Sum of squares of all entries, accumulated and returned in float64 (a Python float)."""
    return float(np.sum(np.square(x, dtype=np.float64)))
