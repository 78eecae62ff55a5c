"""Where the elements of a strided or broadcast array lie, in steps of whole elements."""

from functools import lru_cache

import numpy as np
from numba import cuda

from ...errors import ShapeError


def steps_of(shape):
    """The distance between neighbours along each axis of a C-contiguous array."""
    steps = [1]
    for size in reversed(shape[1:]):
        steps.append(steps[-1] * size)
    return tuple(reversed(steps[: len(shape)]))


def axes_of(axis, ndim):
    """The axes meant by None (all), a number or a tuple, counted from the front. Raises ShapeError."""
    if axis is None:
        return tuple(range(ndim))
    axes = axis if isinstance(axis, tuple) else (axis,)
    if any(not -ndim <= one < ndim for one in axes) or len({one % ndim for one in axes}) < len(axes):
        raise ShapeError(f"An axis, or several different ones, of an array with {ndim} axes is needed, found {axis!r}.")
    return tuple(one % ndim for one in axes)


def collapse(shape, *steps):
    """(shape, *steps) with axes merged that every operand walks as one; at least one axis is left."""
    axes = []
    for size, *ways in zip(shape, *steps, strict=True):
        if size == 1:
            continue
        if axes and all(before == way * size for before, way in zip(axes[-1][1:], ways, strict=True)):
            axes[-1] = (axes[-1][0] * size, *ways)
        else:
            axes.append((size, *ways))
    return tuple(zip(*axes or [(1,) + (0,) * len(steps)], strict=True))


@lru_cache(4096)
def broadcast(*shapes):
    """The common shape, and (collapsed shape, steps of each operand). Raises ShapeError."""
    try:
        shape = np.broadcast_shapes(*shapes)
    except ValueError:
        found = " and ".join(str(tuple(shape)) for shape in shapes)
        raise ShapeError(f"Shapes that broadcast together are needed, found {found}.") from None
    ways = []
    for own in shapes:
        steps = [0 if size == 1 else step for size, step in zip(own, steps_of(own), strict=True)]
        ways.append((0,) * (len(shape) - len(own)) + tuple(steps))
    return shape, collapse(shape, *ways)


def picture(shape):
    """A NumPy view without memory of its own, one byte an element: what NumPy makes of it says where elements lie.

    It must never be read: only views of it may be taken.
    """
    return np.lib.stride_tricks.as_strided(np.empty(1, np.int8), tuple(shape), steps_of(shape))


def offset_in(view, whole):
    """How many elements the first of `view` lies after the first of `whole`, both pictures."""
    first, start = (picture.__array_interface__["data"][0] for picture in (view, whole))
    return first - start if view.size else 0


@cuda.jit(device=True)
def offset(i, shape, steps):
    """Where the i-th element of `shape`, counted in C order, lies."""
    at = 0
    for axis in range(len(shape) - 1, 0, -1):
        at += i % shape[axis] * steps[axis]
        i //= shape[axis]
    return at + i * steps[0]
