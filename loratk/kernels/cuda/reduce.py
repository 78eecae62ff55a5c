"""Sums, extremes, and the undoing of a broadcast."""

import math

import numpy as np
from numba import cuda

from ...errors import ShapeError
from . import blocks
from .arrays import asarray, empty, flat, numpy, reshaped
from .device import LANES, launch, launch_blocks
from .elementwise import div, equal, mul
from .geometry import axes_of, collapse, offset, steps_of
from .shape import broadcast_copy

__all__ = ["argmax", "broadcast_to", "max_grad", "max_over", "sum_over", "sum_squares", "sum_to"]

CHUNK = 4096  # elements a block sums when there are too few outputs to fill a GPU
FEW = 64


def _plain(real, x):
    return real(x)


def _squared(real, x):
    return real(x) * real(x)


_sum, _sum_squares = blocks.summing(_plain), blocks.summing(_squared)


def _reduce(kernel, x, axes, dtype, *, finish=None, scale=()):
    """Reduce the axes of x in one pass, or in two when few outputs have many elements each; the axes are dropped.

    `finish` is the kernel of the second pass. `scale` is an argument that the last pass takes, if any.
    """
    kept = [axis for axis in range(x.ndim) if axis not in axes]
    steps = steps_of(tuple(x.shape))
    kept_way = collapse(tuple(x.shape[axis] for axis in kept), tuple(steps[axis] for axis in kept))
    reduced_way = collapse(tuple(x.shape[axis] for axis in axes), tuple(steps[axis] for axis in axes))
    shape = tuple(x.shape[axis] for axis in kept)
    outputs, count = math.prod(shape), math.prod(x.shape[axis] for axis in axes)
    parts = -(-count // CHUNK) if outputs < FEW and count > CHUNK else 1
    ones = tuple(type(value)(1) for value in scale)
    out = empty(shape if parts == 1 else (outputs, parts), dtype)
    launch_blocks(
        kernel, out.size, LANES, flat(x), flat(out), count, CHUNK if parts > 1 else count, parts,
        *(ones if parts > 1 else scale), *kept_way, *reduced_way,
    )  # fmt: skip
    if parts == 1:
        return out
    return reshaped(_reduce(finish or kernel, out, (1,), dtype, scale=scale), shape)


def _kept(shape, axes):
    return tuple(1 if axis in axes else size for axis, size in enumerate(shape))


def sum_over(x, *, axis=None, keepdims=False):
    """Sum over one axis, a tuple of axes, or all of them (None, giving a 0-d array)."""
    x = asarray(x)
    axes = axes_of(axis, x.ndim)
    dtype = np.sum(np.empty(0, x.dtype)).dtype
    out = _reduce(_sum, x, axes, dtype, scale=(dtype.type(1),))
    return reshaped(out, _kept(x.shape, axes)) if keepdims else out


def mean_of_squares(x):
    """Mean of the squares of all entries, as a 0-d array."""
    scale = x.dtype.type(1 / x.size if x.size else np.nan)
    return _reduce(_sum_squares, x, axes_of(None, x.ndim), x.dtype, finish=_sum, scale=(scale,))


def sum_squares(x):
    """Sum of squares of all entries, accumulated and returned in float64 (a Python float)."""
    x = asarray(x)
    one = (np.float64(1),)
    return float(numpy(_reduce(_sum_squares, x, axes_of(None, x.ndim), np.dtype(np.float64), finish=_sum, scale=one)))


def max_over(x, *, axis=None, keepdims=False):
    """Maximum over one axis, a tuple of axes, or all; NaN wins; no element is an error."""
    x = asarray(x)
    axes = axes_of(axis, x.ndim)
    _need_elements("max_over", x, axes)
    out = _reduce(blocks.max_parts, x, axes, x.dtype)
    return reshaped(out, _kept(x.shape, axes)) if keepdims else out


def _need_elements(name, x, axes):
    if not math.prod(x.shape[axis] for axis in axes):
        raise ShapeError(f"{name} needs at least one element along the axes {tuple(axes)}, found the shape {tuple(x.shape)}.")


def max_grad(g, x, y, *, axis=None):
    """Gradient of `max_over` (g and y with kept axes): shared equally among the entries that attain the maximum."""
    hit = equal(x, y)
    return div(mul(g, hit), sum_over(hit, axis=axis, keepdims=True))


@cuda.jit
def _argmax(x, out, count, step, kept, kept_steps):
    i = cuda.grid(1)
    if i < out.size:
        base = offset(i, kept, kept_steps)
        best, largest = 0, x[base]
        for j in range(1, count):
            value = x[base + j * step]
            if value > largest or (value != value and largest == largest):  # the first NaN wins
                best, largest = j, value
        out[i] = best


def argmax(x, *, axis=-1):
    """Index (int64) of the first maximum along an axis."""
    x = asarray(x)
    if axis is None:
        x, axis = flat(x), 0
    (axis,) = axes_of(axis, x.ndim)
    _need_elements("argmax", x, (axis,))
    steps = steps_of(tuple(x.shape))
    kept = [other for other in range(x.ndim) if other != axis]
    shape = tuple(x.shape[other] for other in kept)
    out = empty(shape, np.int64)
    way = collapse(shape, tuple(steps[other] for other in kept))
    launch(_argmax, out.size, flat(x), flat(out), x.shape[axis], steps[axis], *way)
    return out


def sum_to(x, *, shape):
    """Sum x down to `shape`, from which it was broadcast: the derivative of broadcasting."""
    x = asarray(x)
    extra = x.ndim - len(shape)
    axes = tuple(range(extra)) + tuple(i + extra for i, size in enumerate(shape) if size == 1 and x.shape[i + extra] != 1)
    return reshaped(sum_over(x, axis=axes), shape) if axes else x


def broadcast_to(x, *, shape):
    """x repeated to `shape`, as a new array."""
    return broadcast_copy(asarray(x), shape)
