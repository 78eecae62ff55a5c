"""The LoRA linear layer: thin products around the frozen one, added into its result instead of into new arrays."""

import numpy as np

from .. import runtime
from .gemm import product

__all__ = ["lora_column_norm", "lora_linear", "lora_linear_grad"]


def _scale(x, factor):
    return x if factor == 1 else x * x.dtype.type(factor)


def lora_linear(x, w, a, b, mask=None, *, scaling):
    """x W + scaling (x' A) B and x' A, where x' is x, or x * mask: (n, d), handle (d, k), (d, r), (r, k) -> (n, k), (n, r)."""
    xa = product(x if mask is None else x * mask, a)
    return product(xa, _scale(b, scaling), out=w.matmul(x)), xa


def lora_linear_grad(g, x, xa, w, a, b, mask=None, *, scaling, need_x=True):
    """Gradients of `lora_linear` for x, A and B: (n, k) -> (n, d) or None, (d, r), (r, k)."""
    gb = product(g, _scale(b, scaling).T)
    dx = None
    if need_x:
        dx = w.matmul_t(g)
        if mask is None:
            product(gb, a.T, out=dx)
        else:
            dx += product(gb, a.T) * mask
    return dx, product((x if mask is None else x * mask).T, gb), product(_scale(xa, scaling).T, g)


@runtime.jit(reassociate=True)
def _column_norm(start, stop, w, a, b, scaling, out):
    """Columns start to stop of ||W + scaling A B||, which is formed a row at a time."""
    d, r = a.shape
    row = np.empty(stop - start, w.dtype)
    total = np.zeros(stop - start, w.dtype)
    for i in range(d):
        row[:] = w[i, start:stop]
        for p in range(r):
            factor = scaling * a[i, p]
            line = b[p, start:stop]
            for j in range(row.size):
                row[j] += factor * line[j]
        for j in range(row.size):
            total[j] += row[j] * row[j]
    out[start:stop] = np.sqrt(total)


def lora_column_norm(w, a, b, *, scaling):
    """Euclidean norm of each column of W + scaling A B: handle (d, k), (d, r), (r, k) -> (k,). Liu et al. 2024 (DoRA), eq. 5."""
    w = w.numpy()
    d, k = w.shape
    out = np.empty(k, w.dtype)
    a, b = np.ascontiguousarray(a), np.ascontiguousarray(b)
    grain = max(16, (1 << 18) // max(1, d * a.shape[1]))
    runtime.parallel_for(_column_norm, k, w, a, b, w.dtype.type(scaling), out, grain=grain)
    return out
