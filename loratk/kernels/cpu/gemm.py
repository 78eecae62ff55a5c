"""Matrix products: blocks packed for the register tile, rows or columns shared out over the threads.

C = A B goes as in Goto & van de Geijn 2008, "Anatomy of high-performance matrix multiplication". B is packed as
[block of DEPTH rows][panel of NR columns][row][NR], zero-padded at the edge; a frozen weight is packed once. A thread
takes a range of rows of C (of columns, where rows are few) and goes through B block by block, with its rows of A packed
as [panel of MR rows][DEPTH][MR]. An entry of C is summed over the depth in one order, however the work is shared out.
"""

import math

import numpy as np

from .. import runtime
from .tile import MR, columns, tile

__all__ = ["freeze_weight", "frozen_matmul", "frozen_matmul_t", "matmul"]

DEPTH = 512  # rows of B in a block
ROWS = 8 * MR  # rows of A packed at a time: with DEPTH, what stays in the level-2 cache
SMALL = 1 << 14  # multiplications below which packing costs more than it gains
ALONE = 1 << 22  # multiplications a thread must get for its waking to pay
FEW_ROWS = 256  # rows up to which columns are shared out instead


@runtime.jit
def _pack_b(start, stop, b, s0, s1, out, d, k, nr, depth):
    """Columns of B, read at b[p * s0 + j * s1], as panels of nr columns in blocks of `depth` rows; panels start to stop."""
    panels = (k + nr - 1) // nr
    for p0 in range(0, d, depth):
        kk = min(depth, d - p0)
        for j in range(start, stop):
            at = p0 * panels * nr + j * kk * nr
            wide = min(nr, k - j * nr)
            panel = out[at : at + kk * nr].reshape(kk, nr)
            if s1 == 1:
                for p in range(kk):
                    source = b[(p0 + p) * s0 + j * nr : (p0 + p) * s0 + j * nr + wide]
                    for q in range(wide):
                        panel[p, q] = source[q]
            else:
                for q in range(wide):
                    first = p0 * s0 + (j * nr + q) * s1
                    for p in range(kk):
                        panel[p, q] = b[first + p * s0]
            for p in range(kk):
                for q in range(wide, nr):
                    panel[p, q] = 0


@runtime.jit(inline=True)
def _pack_a(a, s0, s1, i0, rows, p0, kk, out):
    """Rows of A from (i0, p0), read at a[i * s0 + p * s1], as panels of MR rows."""
    for i in range(0, rows, MR):
        tall = min(MR, rows - i)
        panel = out[i * kk : (i + MR) * kk].reshape(kk, MR)
        if tall < MR:
            panel[:] = 0
        if s1 == 1:
            for q in range(tall):
                source = a[(i0 + i + q) * s0 + p0 : (i0 + i + q) * s0 + p0 + kk]
                for p in range(kk):
                    panel[p, q] = source[p]
        else:
            for p in range(kk):
                source = a[(i0 + i) * s0 + (p0 + p) * s1 : (i0 + i) * s0 + (p0 + p) * s1 + (tall - 1) * s0 + 1]
                for q in range(tall):
                    panel[p, q] = source[q * s0]


@runtime.jit
def _product(a, s0, s1, b, c, first, last, left, right, d, k, nr, depth, rows, accumulate):
    """Rows first to last of C (.., k), one-dimensional, in column panels left to right."""
    packed = np.empty(rows * min(depth, d), a.dtype)
    edge = np.empty(MR * nr, a.dtype)
    panels = (k + nr - 1) // nr
    for i0 in range(first, last, rows):
        tall = min(rows, last - i0)
        for p0 in range(0, d, depth):
            kk = min(depth, d - p0)
            add = 1 if accumulate or p0 > 0 else 0
            _pack_a(a, s0, s1, i0, tall, p0, kk, packed)
            for j in range(left, right):
                at = p0 * panels * nr + j * kk * nr
                wide = min(nr, k - j * nr)
                for i in range(0, tall, MR):
                    here = (i0 + i) * k + j * nr
                    if wide == nr and tall - i >= MR:
                        tile(packed, i * kk, b, at, kk, c, here, k, add)
                    else:
                        tile(packed, i * kk, b, at, kk, edge, 0, nr, 0)
                        for q in range(min(MR, tall - i)):
                            for r in range(wide):
                                old = c[here + q * k + r] if add else edge.dtype.type(0)
                                c[here + q * k + r] = old + edge[q * nr + r]


@runtime.jit
def _gemm(start, stop, by_columns, a, s0, s1, b, c, n, d, k, nr, depth, rows, accumulate):
    """Panels start to stop of C, row panels or column panels."""
    if by_columns:
        _product(a, s0, s1, b, c, 0, n, start, stop, d, k, nr, depth, rows, accumulate)
    else:
        _product(a, s0, s1, b, c, start * MR, min(stop * MR, n), 0, (k + nr - 1) // nr, d, k, nr, depth, rows, accumulate)


@runtime.jit(inline=True)
def _plain(a, s0, s1, b, t0, t1, c, n, d, k, accumulate):
    """A small product without packing."""
    for i in range(n):
        row = c[i * k : (i + 1) * k]
        if not accumulate:
            row[:] = 0
        for p in range(d):
            x = a[i * s0 + p * s1]
            if t1 == 1:
                line = b[p * t0 : p * t0 + k]
                for j in range(k):
                    row[j] += x * line[j]
            else:
                for j in range(k):
                    row[j] += x * b[p * t0 + j * t1]


@runtime.jit
def _batch(start, stop, a, sa, s0, s1, b, sb, t0, t1, c, n, d, k, nr, depth, rows, small, accumulate):
    """Products start to stop of a stack, each by one thread: factors sa and sb entries apart."""
    packed = np.empty(1 if small else (k + nr - 1) // nr * nr * d, c.dtype)
    for at in range(start, stop):
        mine, other, out = a[at * sa :], b[at * sb :], c[at * n * k : (at + 1) * n * k]
        if small:
            _plain(mine, s0, s1, other, t0, t1, out, n, d, k, accumulate)
        else:
            _pack_b(0, (k + nr - 1) // nr, other, t0, t1, packed, d, k, nr, depth)
            _product(mine, s0, s1, packed, out, 0, n, 0, (k + nr - 1) // nr, d, k, nr, depth, rows, accumulate)


def _line(x):
    """A stack of matrices (.., n, d) as (1-D array, row stride, column stride) in entries, without a copy where it is laid out so."""
    n, d = x.shape[-2:]
    if not x.flags.c_contiguous:
        turned = x.swapaxes(-1, -2)
        if turned.flags.c_contiguous:
            return turned.reshape(-1), 1, n
        x = np.ascontiguousarray(x)
    return x.reshape(-1), d, 1


def pack(b):
    """A matrix (d, k) packed for `multiply`."""
    (d, k), (line, s0, s1), nr = b.shape, _line(b), columns(b.dtype)
    panels = -(-k // nr)
    out = np.empty(d * panels * nr, b.dtype)
    runtime.parallel_for(_pack_b, panels, line, s0, s1, out, d, k, nr, DEPTH, grain=max(1, ALONE // max(1, d * nr)))
    return out


def multiply(a, packed, k, out=None):
    """a times a packed matrix: (n, d), (d, k) packed -> (n, k); added to `out` (contiguous) if that is given."""
    n, d = a.shape
    c = np.empty((n, k), a.dtype) if out is None else out
    if not d and out is None:
        c[:] = 0
    if not c.size or not d:
        return c
    line, s0, s1 = _line(a)
    nr = columns(a.dtype)
    by_columns = n <= FEW_ROWS
    panels = -(-k // nr) if by_columns else -(-n // MR)
    grain = max(1, ALONE * panels // max(1, n * d * k))
    args = (by_columns, line, s0, s1, packed, c.reshape(-1), n, d, k, nr, DEPTH, ROWS, out is not None)
    runtime.parallel_for(_gemm, panels, *args, grain=grain)
    return c


def product(a, b, out=None):
    """a b: (n, d), (d, k) -> (n, k); added to `out` (contiguous) if that is given."""
    (n, d), k = a.shape, b.shape[1]
    if n * d * k > SMALL:
        return multiply(a, pack(b), k, out)
    return _stack(a, b, 1, n, d, k, out)


def _stack(a, b, count, n, d, k, out=None):
    (line_a, s0, s1), (line_b, t0, t1) = _line(a), _line(b)
    c = np.empty((*a.shape[:-1], k), a.dtype) if out is None else out
    args = (line_a, n * d, s0, s1, line_b, d * k, t0, t1, c.reshape(-1), n, d, k, columns(a.dtype), DEPTH, ROWS)
    grain = max(1, ALONE // max(1, n * d * k))
    runtime.parallel_for(_batch, count, *args, n * d * k <= SMALL, out is not None, grain=grain)
    return c


def matmul(a, b):
    """Matrix product over the last two axes, leading axes broadcast: (..., n, d), (..., d, k) -> (..., n, k)."""
    if a.ndim == 2 and b.ndim == 2:
        if a.shape[1] != b.shape[0]:
            raise ValueError(f"matmul: shapes {a.shape} and {b.shape} do not fit")
        return product(a, b)
    if b.ndim == 2:
        return product(np.ascontiguousarray(a).reshape(math.prod(a.shape[:-1]), a.shape[-1]), b).reshape(*a.shape[:-1], b.shape[1])
    lead = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    a, b = (x if x.shape[:-2] == lead else np.broadcast_to(x, lead + x.shape[-2:]) for x in (a, b))
    return _stack(a, b, math.prod(lead), *a.shape[-2:], b.shape[-1])


class PackedWeight:
    """A frozen weight (d, k), packed at its first product for x W, and at its first g W^T for that; each as large as the weight."""

    def __init__(self, w):
        self._w = np.ascontiguousarray(w)
        self.shape, self.dtype = self._w.shape, self._w.dtype
        self._forward = self._backward = None

    @property
    def nbytes(self):
        """Bytes held beyond the array itself."""
        return sum(packed.nbytes for packed in (self._forward, self._backward) if packed is not None)

    def matmul(self, x):
        """x W: (..., d) -> (..., k)."""
        if self._forward is None:
            self._forward = pack(self._w)
        return self._rows(x, self._forward, self.shape[1])

    def matmul_t(self, g):
        """g W^T: (..., k) -> (..., d)."""
        if self._backward is None:
            self._backward = pack(self._w.T)
        return self._rows(g, self._backward, self.shape[0])

    def numpy(self):
        """The weight as a NumPy array (d, k)."""
        return self._w

    @staticmethod
    def _rows(x, packed, k):
        rows = x if x.ndim == 2 else np.ascontiguousarray(x).reshape(math.prod(x.shape[:-1]), x.shape[-1])
        y = multiply(rows, packed, k)
        return y if x.ndim == 2 else y.reshape(*x.shape[:-1], k)


def freeze_weight(w):
    """A weight prepared once for many products: (d, k) -> a handle with `matmul`, `matmul_t`, `numpy`, `nbytes`."""
    return PackedWeight(w)


def frozen_matmul(x, w):
    """x W with a frozen W: (..., d), handle (d, k) -> (..., k)."""
    return w.matmul(x)


def frozen_matmul_t(g, w):
    """g W^T with a frozen W: (..., k), handle (d, k) -> (..., d)."""
    return w.matmul_t(g)
