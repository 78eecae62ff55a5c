"""Moving elements without computing: reshape, transpose, indexing, joining, gathering rows.

One kernel copies between two strided pictures of arrays; NumPy says what the pictures look like.
"""

import math
from types import EllipsisType

import numpy as np
from numba import cuda

from ...errors import ConfigError, ShapeError
from .arrays import asarray, asarrays, empty, flat, numpy, reshaped, zeros
from .device import launch
from .geometry import axes_of, collapse, offset, offset_in, picture, steps_of

__all__ = ["concat", "gather_rows", "getitem", "getitem_grad", "reshape", "scatter", "scatter_add_rows", "transpose"]


@cuda.jit
def _copy(x, x_first, x_steps, out, out_first, out_steps, shape, size):
    i = cuda.grid(1)
    if i < size:
        out[out_first + offset(i, shape, out_steps)] = x[x_first + offset(i, shape, x_steps)]


def _copy_between(x, x_first, x_steps, out, out_first, out_steps, shape):
    shape, x_steps, out_steps = collapse(shape, x_steps, out_steps)
    size = math.prod(shape)
    launch(_copy, size, flat(x), x_first, x_steps, flat(out), out_first, out_steps, shape, size)


def _taken(x, view, first=0):
    """A new array that holds what `view`, a picture taken of x, shows."""
    out = empty(view.shape, x.dtype)
    _copy_between(x, first, view.strides, out, 0, steps_of(view.shape), view.shape)
    return out


def broadcast_copy(x, shape):
    """x repeated to `shape`, as a new array."""
    return _taken(x, np.broadcast_to(picture(x.shape), shape))


def reshape(x, *, shape):
    """x with another shape; one entry may be -1."""
    x = asarray(x)
    return reshaped(x, np.reshape(picture(x.shape), shape).shape)


def transpose(x, *, axes):
    """x with its axes permuted."""
    x = asarray(x)
    return _taken(x, np.transpose(picture(x.shape), axes))


def _basic(index):
    """A basic index, made one that always gives a view: NumPy must not read an element of a picture."""
    parts = index if isinstance(index, tuple) else (index,)
    for part in parts:
        if isinstance(part, bool) or not (part is None or isinstance(part, int | np.integer | slice | EllipsisType)):
            raise ConfigError(f"An index is made of integers, slices, '...' and None, found {part!r}.")
    return parts if any(part is Ellipsis for part in parts) else (*parts, Ellipsis)


def getitem(x, *, index):
    """x[index] for integers, slices, `...` and None (basic indexing)."""
    x = asarray(x)
    whole = picture(x.shape)
    view = whole[_basic(index)]
    return _taken(x, view, offset_in(view, whole))


def getitem_grad(g, *, index, shape):
    """Zeros of `shape` with g at [index]."""
    g = asarray(g)
    whole = picture(shape)
    view = whole[_basic(index)]
    out = zeros(shape, g.dtype)
    seen = np.broadcast_to(picture(g.shape), view.shape)
    _copy_between(g, 0, seen.strides, out, offset_in(view, whole), view.strides, view.shape)
    return out


def concat(*arrays, axis):
    """Arrays joined along an axis."""
    arrays = asarrays(*arrays)
    shapes = [list(x.shape) for x in arrays]
    (axis,) = axes_of(axis, len(shapes[0]))
    others = {(*shape[:axis], None, *shape[axis + 1 :]) for shape in shapes}
    if len(others) > 1:
        found = ", ".join(str(tuple(shape)) for shape in shapes)
        raise ShapeError(f"Arrays joined along axis {axis} must have equal sizes along all others, found the shapes {found}.")
    shape = (*shapes[0][:axis], sum(own[axis] for own in shapes), *shapes[0][axis + 1 :])
    out = empty(shape, np.result_type(*(x.dtype for x in arrays)))
    steps, first = steps_of(shape), 0
    for x, own in zip(arrays, shapes, strict=True):
        _copy_between(x, 0, steps_of(own), out, first, steps, own)
        first += own[axis] * steps[axis]
    return out


@cuda.jit
def _find_outside(index, size, ignored, found):
    i = cuda.grid(1)
    if i < index.size and (index[i] < 0 or index[i] >= size) and index[i] != ignored:
        found[0] = 1


def need_inside(name, index, size, ignored=0):
    """Raise IndexError unless all integers lie in [0, size) or are `ignored`: a GPU would read and write anywhere."""
    found = zeros(1, np.int32)
    launch(_find_outside, index.size, flat(index), size, ignored, found)
    if numpy(found)[0]:
        values = numpy(index)[numpy(index) != ignored]
        raise IndexError(f"{name} needs integers in [0, {size}), found {values.min()} to {values.max()}.")


@cuda.jit
def _gather(w, index, out, k):
    i = cuda.grid(1)
    if i < out.size:
        out[i] = w[index[i // k] * k + i % k]


def gather_rows(w, index):
    """w[index]: (v, k), integers (...,) in [0, v) -> (..., k). Raises IndexError for an index outside."""
    w, index = asarrays(w, index)
    rows, *rest = w.shape
    need_inside("gather_rows", index, rows)
    out = empty((*index.shape, *rest), w.dtype)
    launch(_gather, out.size, flat(w), flat(index), flat(out), math.prod(rest))
    return out


@cuda.jit
def _link(index, following, first):
    i = cuda.grid(1)
    if i < index.size:
        first[i] = True
        for j in range(i):
            if index[j] == index[i]:
                first[i] = False
        j = i + 1
        while j < index.size and index[j] != index[i]:
            j += 1
        following[i] = j


@cuda.jit
def _scatter(g, index, following, first, out, k, size):
    i = cuda.grid(1)
    if i < size:
        row, column = i // k, i % k
        if first[row]:
            total = g[i]
            at = following[row]
            while at < index.size:
                total += g[at * k + column]
                at = following[at]
            out[index[row] * k + column] = total


def scatter_add_rows(g, index, *, rows):
    """Sum of the rows of g by index, in their order: (..., k), integers (...,) in [0, rows) -> (rows, k).

    Each row's first occurrence sums all the others, along a chain from one to the next: no atomics, the same bits always.
    Raises IndexError for an index outside.
    """
    g, index = asarrays(g, index)
    need_inside("scatter_add_rows", index, rows)
    k = g.shape[g.ndim - 1]
    out = zeros((rows, k), g.dtype)
    following, first = empty(index.size, np.int64), empty(index.size, np.bool_)
    launch(_link, index.size, flat(index), following, first)
    launch(_scatter, g.size, flat(g), flat(index), following, first, flat(out), k, g.size)
    return out


@cuda.jit
def _scatter_each(x, index, out):
    i = cuda.grid(1)
    if i < x.size:
        out[index[i]] = x[i]


def scatter(x, index, *, size):
    """Zeros (size,) with x at index, each of which occurs once: (n,), integers (n,) in [0, size) -> (size,). Raises IndexError."""
    x, index = asarrays(x, index)
    need_inside("scatter", index, size)
    out = zeros(size, x.dtype)
    launch(_scatter_each, x.size, flat(x), flat(index), out)
    return out
