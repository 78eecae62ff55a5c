"""Matrix products: blocks of TILE x TILE threads, which read the matrices a tile at a time into shared memory."""

import math

import numpy as np
from numba import cuda

from ...errors import ShapeError
from .arrays import asarray, asarrays, empty, flat, is_device_array, numpy, reshaped
from .device import TILE, launch_blocks
from .geometry import broadcast, offset

__all__ = ["freeze_weight", "frozen_matmul", "frozen_matmul_t", "matmul"]


@cuda.jit
def _matmul(a, a_row, a_column, b, b_row, b_column, out, n, d, k, scale, accumulate, shape, a_steps, b_steps):
    real = out.dtype.type
    a_tile = cuda.shared.array((TILE, TILE), out.dtype)
    b_tile = cuda.shared.array((TILE, TILE), out.dtype)
    across, down = (k + TILE - 1) // TILE, (n + TILE - 1) // TILE
    block = cuda.blockIdx.x
    matrix = block // (across * down)
    y, x = cuda.threadIdx.y, cuda.threadIdx.x
    row = block // across % down * TILE + y
    column = block % across * TILE + x
    a_at = offset(matrix, shape, a_steps) + row * a_row
    b_at = offset(matrix, shape, b_steps) + column * b_column
    total = real(0)
    for start in range(0, d, TILE):
        a_tile[y, x] = real(0)
        b_tile[y, x] = real(0)
        if row < n and start + x < d:
            a_tile[y, x] = real(a[a_at + (start + x) * a_column])
        if column < k and start + y < d:
            b_tile[y, x] = real(b[b_at + (start + y) * b_row])
        cuda.syncthreads()
        for i in range(TILE):
            total += a_tile[y, i] * b_tile[i, x]
        cuda.syncthreads()
    if row < n and column < k:
        at = (matrix * n + row) * k + column
        if accumulate:
            out[at] += scale * total
        else:
            out[at] = scale * total


def product(a, b, *, a_t=False, b_t=False, scale=1.0, add_to=None):
    """scale A B, with A or B transposed on the way if asked; or added to the array `add_to`, which is changed.

    (..., n, d), (..., d, k) -> (..., n, k), leading axes broadcast. Raises ShapeError.
    """
    a, b = asarrays(a, b)
    if a.ndim < 2 or b.ndim < 2:
        raise ShapeError(f"A matrix product needs arrays of at least 2 axes, found shapes {tuple(a.shape)} and {tuple(b.shape)}.")
    (*a_lead, n, d), (*b_lead, rows, k) = a.shape, b.shape
    (a_row, a_column), (b_row, b_column) = (d, 1), (k, 1)
    if a_t:
        n, d, a_row, a_column = d, n, 1, d
    if b_t:
        rows, k, b_row, b_column = k, rows, 1, k
    if d != rows:
        raise ShapeError(f"A matrix product of shapes {(*a_lead, n, d)} and {(*b_lead, rows, k)}: {d} columns meet {rows} rows.")
    lead, (batch, a_steps, b_steps) = broadcast(tuple(a_lead), tuple(b_lead))
    shape = (*lead, n, k)
    if not b_lead and not a_t:  # one B for every A: all their rows make one tall product
        n, batch, a_steps, b_steps = math.prod(lead) * n, (1,), (0,), (0,)
    out = empty(shape, np.result_type(a.dtype, b.dtype)) if add_to is None else add_to
    if out.size:
        blocks = math.prod(batch) * -(-n // TILE) * -(-k // TILE)
        a_steps, b_steps = tuple(step * n * d for step in a_steps), tuple(step * d * k for step in b_steps)
        launch_blocks(
            _matmul, blocks, (TILE, TILE), flat(a), a_row, a_column, flat(b), b_row, b_column, flat(out),
            n, d, k, out.dtype.type(scale), add_to is not None, batch, a_steps, b_steps,
        )  # fmt: skip
    return out


def matmul(a, b):
    """Matrix product over the last two axes, leading axes broadcast: (..., n, d), (..., d, k) -> (..., n, k)."""
    return product(a, b)


class FrozenArray:
    """A frozen weight on the device: the members of the reference's handle."""

    def __init__(self, w):
        self.array = asarray(w)
        if self.array.ndim != 2:
            raise ShapeError(f"A frozen weight is a matrix (d, k), found the shape {tuple(self.array.shape)}.")
        self.shape, self.dtype = tuple(self.array.shape), self.array.dtype
        self.nbytes = 0 if is_device_array(w) else self.array.nbytes  # beyond the array it was made from

    def _product(self, x, transposed):
        x = asarray(x)
        taken, given = reversed(self.shape) if transposed else self.shape
        *lead, width = x.shape or (0,)
        if width != taken:
            raise ShapeError(f"A frozen weight {self.shape} takes rows of {taken} here, found an array of shape {tuple(x.shape)}.")
        rows = reshaped(x, (math.prod(lead), width))
        return reshaped(product(rows, self.array, b_t=transposed), (*lead, given))

    def matmul(self, x):
        """x W: (..., d) -> (..., k)."""
        return self._product(x, False)

    def matmul_t(self, g):
        """g W^T: (..., k) -> (..., d)."""
        return self._product(g, True)

    def numpy(self):
        """The weight as a NumPy array (d, k)."""
        return numpy(self.array)


def freeze_weight(w):
    """A weight prepared once for many products: (d, k) -> a handle with `matmul`, `matmul_t`, `numpy`, `nbytes`."""
    return FrozenArray(w)


def frozen_matmul(x, w):
    """x W with a frozen W: (..., d), handle (d, k) -> (..., k)."""
    return w.matmul(x)


def frozen_matmul_t(g, w):
    """g W^T with a frozen W: (..., k), handle (d, k) -> (..., d)."""
    return w.matmul_t(g)
