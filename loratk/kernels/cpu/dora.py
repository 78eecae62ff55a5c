"""The DoRA linear layer: the LoRA layer, and one pass over its result each way."""

import numpy as np

from .. import runtime
from ..memory import empty
from .lora import lora_linear, lora_linear_grad
from .pack import pack_a
from .split import GRAIN, row_grain
from .tile import LOW, columns, low_tile

__all__ = ["dora_linear", "dora_linear_grad", "lora_column_norm"]

ALONE = 1 << 21  # multiplications a thread must get for its waking to pay
BLOCK = 64  # rows summed on their own, so that threads do not change the sums


@runtime.jit
def _column_norm(start, stop, w, a, b, r, out, nr):
    """Column panels start to stop of ||W + A B||, some rows at a time; a packed as panels of LOW rows, b (r, k) longer by a panel."""
    d, k = w.shape
    first, last = start * nr, min(k, stop * nr)
    total, edge = np.zeros(last - first, w.dtype), np.empty(LOW * nr, w.dtype)
    for i0 in range(0, d, LOW):
        for j in range(first, last, nr):
            low_tile(a, i0 * r, LOW, b, j, k, r, a, 0, b, 0, 0, 0, edge, 0, nr, 0)
            sums = total[j - first : min(j + nr, last) - first]
            for i in range(min(LOW, d - i0)):
                line, update = w[i0 + i, j : j + sums.size], edge[i * nr :]
                for q in range(sums.size):
                    moved = line[q] + update[q]
                    sums[q] += moved * moved
    out[first:last] = np.sqrt(total)


def lora_column_norm(w, a, b, *, scaling):
    """Euclidean norm of each column of W + scaling A B: handle (d, k), (d, r), (r, k) -> (k,). Liu et al. 2024 (DoRA), eq. 5."""
    w, nr = w.numpy(), columns(b.dtype)
    (d, k), r = w.shape, a.shape[1]
    packed, out = np.empty(-(-d // LOW) * LOW * r, w.dtype), np.empty(k, w.dtype)
    pack_a((a * a.dtype.type(scaling)).reshape(-1), r, 1, 0, d, 0, r, packed, LOW)
    lines = np.concatenate([np.ascontiguousarray(b).reshape(-1), np.zeros(nr, b.dtype)])  # the tile reads whole vectors
    panels = -(-k // nr)
    runtime.parallel_for(_column_norm, panels, w, packed, lines, r, out, nr, grain=max(1, ALONE * panels // max(1, d * r * k)))
    return out


@runtime.jit
def _stretch(start, stop, z, ratio, bias, y):
    """Rows start to stop of z ratio + bias."""
    for i in range(start, stop):
        line, out = z[i], y[i]
        if bias.size:
            for j in range(line.size):
                out[j] = line[j] * ratio[j] + bias[j]
        else:
            for j in range(line.size):
                out[j] = line[j] * ratio[j]


@runtime.jit
def _stretch_grad(start, stop, g, z, ratio, gz, sums):
    """Blocks start to stop of rows of g ratio, and of g z, summed over each block."""
    for block in range(start, stop):
        total = sums[block]
        total[:] = 0
        for i in range(block * BLOCK, min(len(g), (block + 1) * BLOCK)):
            above, line, out = g[i], z[i], gz[i]
            for j in range(above.size):
                total[j] += above[j] * line[j]
                out[j] = above[j] * ratio[j]


def dora_linear(x, w, a, b, m, bias=None, *, scaling):
    """m/c z + bias with z = x W + scaling (x A) B, and c, z, x A; c are the column norms of W + scaling A B.

    (n, d), handle (d, k), (d, r), (r, k), (k,), (k,) -> (n, k), (k,), (n, k), (n, r). Liu et al. 2024 (DoRA), eq. 5.
    """
    c = np.maximum(lora_column_norm(w, a, b, scaling=scaling), np.finfo(x.dtype).tiny)  # a column of zeros stays one
    z, xa = lora_linear(x, w, a, b, scaling=scaling)
    y, shift = empty(z.shape, z.dtype), c[:0] if bias is None else np.ascontiguousarray(bias)
    runtime.parallel_for(_stretch, len(z), z, m / c, shift, y, grain=row_grain(z.shape[1], GRAIN))
    return y, c, z, xa


def dora_linear_grad(g, x, c, z, xa, w, a, b, m, *, scaling, need_x=True):
    """Gradients of `dora_linear` for x, A, B and m: (n, k) -> (n, d) or None, (d, r), (r, k), (k,).

    c, z and xa are what `dora_linear` returned; c is a constant (Liu et al. 2024, section 4.3).
    """
    g, z = np.ascontiguousarray(g), np.ascontiguousarray(z)
    (n, k), gz = g.shape, empty(g.shape, g.dtype)
    sums = np.empty((-(-n // BLOCK), k), g.dtype)
    runtime.parallel_for(_stretch_grad, len(sums), g, z, m / c, gz, sums, grain=row_grain(k * BLOCK, GRAIN))
    dx, da, db = lora_linear_grad(gz, x, xa, w, a, b, scaling=scaling, need_x=need_x)
    return dx, da, db, np.sum(sums, axis=0) / c
