"""How wrappers hand arrays to compiled loops, and NumPy's own loops to several threads."""

import math

import numpy as np

from ..memory import empty
from ..runtime import get_num_threads, parallel_for

GRAIN = 1 << 15  # cheap elements that a thread must get before waking it pays
ARITHMETIC = 1 << 19  # the same for what NumPy does in a vector instruction or two: memory is the limit, and wakes cost as much as 2 MB


def flat(loop, *arrays, constants=(), grain=GRAIN):
    """The result of an element-wise compiled loop `(start, stop, *arrays, *constants, out)`; arrays are broadcast, and go in as 1-D."""
    shape = arrays[0].shape
    for array in arrays:
        if array.shape != shape:
            shape = np.broadcast_shapes(*(array.shape for array in arrays))
            arrays = tuple(array if array.shape == shape else np.broadcast_to(array, shape) for array in arrays)
            break
    out = empty(shape, arrays[0].dtype)
    lines = [array.reshape(-1) for array in arrays]  # a copy where it is not contiguous
    size = out.size
    if 0 < size < 2 * grain:  # one part
        loop(0, size, *lines, *constants, out.reshape(-1))
    else:
        parallel_for(loop, size, *lines, *constants, out.reshape(-1), grain=grain)
    return out


def as_rows(x):
    """x as a contiguous matrix of the rows along its last axis: (..., k) -> (n, k)."""
    x = np.ascontiguousarray(x)
    return x if x.ndim == 2 else x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def row_index(index, rows):
    """An index of rows as compiled loops take it: 1-D, contiguous, int64. Raises IndexError outside [0, rows)."""
    index = np.ascontiguousarray(index, np.int64).reshape(-1)
    if index.size and not 0 <= index.min() <= index.max() < rows:
        raise IndexError(f"Row indices must lie in [0, {rows}), found {index.min()} to {index.max()}.")
    return index


def row_grain(k, grain=GRAIN):
    """The least number of rows of k entries for a thread."""
    return max(1, grain // max(k, 1))


def ufunc(function, *operands, grain=None):
    """A NumPy ufunc, on several threads where each gets `grain` elements (None: ARITHMETIC): NumPy works outside the global lock."""
    size = max(operand.size for operand in operands)
    if size < 2 * GRAIN or get_num_threads() == 1 or not all(operand.flags.c_contiguous for operand in operands):
        return function(*operands)
    shapes = {operand.shape for operand in operands}
    shape = shapes.pop() if len(shapes) == 1 else np.broadcast_shapes(*shapes)
    out = empty(shape, np.result_type(*operands))
    if not shapes:
        target, operands = out.reshape(-1), tuple(operand.reshape(-1) for operand in operands)
    else:
        target = out
    rows = len(target)
    whole = tuple(operand.ndim < target.ndim or len(operand) != rows for operand in operands)
    errors = np.geterr()  # a setting of the thread that set it

    def part(start, stop):
        with np.errstate(**errors):
            function(*(o if all_rows else o[start:stop] for o, all_rows in zip(operands, whole, strict=True)), out=target[start:stop])

    parallel_for(part, rows, grain=max(1, (grain or ARITHMETIC) * rows // max(out.size, 1)))
    return out
