"""The LoRA linear layer: thin products around the frozen one, added into its result instead of into new arrays."""

import numpy as np

from .. import runtime
from ..memory import empty
from .gemm import ROWS, add_product, product
from .pack import DEPTH, pack_a, pack_b
from .thin import STRIP
from .thin import across_loop as across
from .thin import dots_loop as dots
from .tile import LOW, columns

__all__ = ["lora_linear", "lora_linear_grad"]


ONE_CALL = 1 << 23  # multiplications below which a layer is one compiled call on one thread: less than two threads are worth


def _scale(x, factor):
    return x if factor == 1 else x * x.dtype.type(factor)


@runtime.jit(inline=True)
def _lines(m, across_rows, scaling, rows):
    """The columns of a thin matrix, or its rows, times scaling, as lines of a matrix with a multiple of four rows."""
    d, r = m.shape if across_rows else (m.shape[1], m.shape[0])
    out = np.zeros(((r + 3) // 4 * 4, d), m.dtype)
    for q in range(r):
        for p in range(d):
            out[q, p] = (m[p, q] if across_rows else m[q, p]) * scaling
    return out


@runtime.jit(inline=True)
def _panels(m, scaling, nr):
    """A thin matrix (r, k) times scaling, packed as a block of B."""
    r, k = m.shape
    panels = (k + nr - 1) // nr
    out = np.zeros(panels * r * nr, m.dtype)
    for q in range(r):
        for j in range(k):
            out[(j // nr * r + q) * nr + j % nr] = m[q, j] * scaling
    return out


@runtime.jit
def _forward(x, w, a, b, bias, scaling, y, xa, nr):
    """`lora_linear` of a small layer; w packed, scaling of the arrays' dtype."""
    (n, d), (r, k) = x.shape, b.shape
    dots(0, (n + 3) // 4, x, _lines(a, True, x.dtype.type(1), r), xa, r)
    rows, low = xa.reshape(n * r), _panels(b, scaling, nr)
    add_product(
        x.reshape(n * d), d, 1, w, rows, low, r * nr, nr, bias, y.reshape(n * k), 0, n, 0, (k + nr - 1) // nr, d, k, r, nr, DEPTH, ROWS
    )


@runtime.jit
def _backward(g, x, xa, w, a, b, scaling, dx, da, db, nr):
    """`lora_linear_grad` of a small layer; w^T packed; no gradient for x if `dx` has no rows."""
    (n, d), (r, k) = x.shape, b.shape
    gb = np.empty((n, r), g.dtype)
    dots(0, (n + 3) // 4, g, _lines(b, False, scaling, r), gb, r)
    if dx.size:
        none, low = g.reshape(n * k)[:0], np.empty((d + nr - 1) // nr * nr * r, a.dtype)
        pack_b(0, (d + nr - 1) // nr, a.reshape(d * r), 1, r, low, r, d, nr, DEPTH)
        flat, rows = g.reshape(n * k), gb.reshape(n * r)
        add_product(flat, k, 1, w, rows, low, r * nr, nr, none, dx.reshape(n * d), 0, n, 0, (d + nr - 1) // nr, k, d, r, nr, DEPTH, ROWS)
    turned = np.empty(r * d, a.dtype)
    packed = np.empty((r + LOW - 1) // LOW * LOW * n, a.dtype)
    pack_a(gb.reshape(n * r), 1, r, 0, r, 0, n, packed, LOW)
    across(0, (d + nr - 1) // nr, packed, x.reshape(n * d), turned, n, r, d, nr, STRIP)
    for p in range(d):
        for q in range(r):
            da[p, q] = turned[q * d + p]
    pack_a(xa.reshape(n * r), 1, r, 0, r, 0, n, packed, LOW)
    packed *= scaling
    across(0, (k + nr - 1) // nr, packed, g.reshape(n * k), db.reshape(r * k), n, r, k, nr, STRIP)


def _is_small(x, w, rank):
    return 0 < x.shape[0] * w.shape[0] * w.shape[1] < ONE_CALL and rank <= DEPTH


def lora_linear(x, w, a, b, mask=None, bias=None, *, scaling):
    """x W + bias + scaling (x' A) B and x' A, x' = x or x * mask: (n, d), handle (d, k), (d, r), (r, k) -> (n, k), (n, r)."""
    if mask is None and _is_small(x, w, b.shape[0]):
        x, a, b = np.ascontiguousarray(x), np.ascontiguousarray(a), np.ascontiguousarray(b)
        n, dtype = x.shape[0], x.dtype
        y, xa = empty((n, b.shape[1]), dtype), np.empty((n, b.shape[0]), dtype)
        shift = y[0, :0] if bias is None else np.ascontiguousarray(bias)
        _forward(x, w.forward(), a, b, shift, dtype.type(scaling), y, xa, columns(dtype))
        return y, xa
    xa = product(x if mask is None else x * mask, a)
    return w.matmul(x, low=(_scale(xa, scaling), b), bias=bias), xa


def lora_linear_grad(g, x, xa, w, a, b, mask=None, *, scaling, need_x=True):
    """Gradients of `lora_linear` for x, A and B: (n, k) -> (n, d) or None, (d, r), (r, k)."""
    if mask is None and _is_small(x, w, b.shape[0]):
        g, x, xa, a, b = (np.ascontiguousarray(each) for each in (g, x, xa, a, b))
        dtype = x.dtype
        dx, da, db = empty(x.shape if need_x else (0, x.shape[1]), dtype), np.empty(a.shape, dtype), np.empty(b.shape, dtype)
        _backward(g, x, xa, w.backward() if need_x else g[0, :0], a, b, dtype.type(scaling), dx, da, db, columns(dtype))
        return dx if need_x else None, da, db
    gb = product(g, _scale(b, scaling).T)
    dx = None
    if need_x and mask is None:
        dx = w.matmul_t(g, low=(gb, a.T))
    elif need_x:
        dx = w.matmul_t(g)
        dx += product(gb, a.T) * mask
    return dx, product((x if mask is None else x * mask).T, gb), product(_scale(xa, scaling).T, g)
