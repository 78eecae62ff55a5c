"""Matrix products: blocks packed for the register tile, rows or columns shared out over the threads.

C = A B goes as in Goto & van de Geijn 2008, "Anatomy of high-performance matrix multiplication". B is packed block by
block, a frozen weight once for all. A thread takes a range of rows of C (of columns, where rows are few) and goes through
B block by block with its rows of A packed beside it. An entry of C is summed over the depth in one order, however the
work is shared out. Low-rank terms and the bias are added while the rows of C are still in the cache.
"""

import math

import numpy as np

from .. import runtime
from ..memory import empty
from .pack import DEPTH, line, pack, pack_a, pack_b
from .thin import THIN, across, dots
from .tile import LOW, MR, columns, low_tile, pair_tile, tile

__all__ = ["matmul"]

ROWS = 8 * MR  # rows of A packed at a time: with DEPTH, what stays in the level-2 cache
SMALL = 1 << 14  # multiplications below which packing costs more than it gains
ALONE = 1 << 22  # multiplications a thread must get for its waking to pay
FEW_ROWS = 256  # rows up to which columns are shared out instead


@runtime.jit(inline=True)
def _put(edge, nr, tall, wide, c, here, k, add):
    """The part of a tile that lies inside C."""
    for q in range(tall):
        for r in range(wide):
            old = c[here + q * k + r] if add else edge.dtype.type(0)
            c[here + q * k + r] = old + edge[q * nr + r]


@runtime.jit(inline=True)
def height(tall):
    """The rows of the first tile where so many are left: lower tiles where these leave fewer rows empty."""
    return 2 if tall <= 2 else LOW if tall <= LOW or tall == 2 * LOW else MR


@runtime.jit(inline=True)
def pack_rows(a, s0, s1, i0, tall, p0, kk, packed):
    """Rows i0 to i0 + tall of A as panels of the heights that `block` will take."""
    i = 0
    while i < tall:
        mr = height(tall - i)
        pack_a(a, s0, s1, i0 + i, min(mr, tall - i), p0, kk, packed[i * kk :], mr)
        i += mr


@runtime.jit(inline=True)
def block(packed, b, b_at, low_a, low_b, low_jump, low_step, rank, c, edge, i0, tall, left, right, k, nr, kk, add):
    """Rows i0 to i0 + tall of C, column panels left to right: packed A times one block of B, whose panels are kk deep, + low_a low_b.

    Panels of low_b are low_jump entries apart, their rows low_step.
    """
    for j in range(left, right):
        at = b_at + j * kk * nr
        low = j * low_jump
        wide = min(nr, k - j * nr)
        i = 0
        while i < tall:
            here = (i0 + i) * k + j * nr
            mr = height(tall - i)
            whole = wide == nr and tall - i >= mr
            out, out_at, out_step, out_add = (c, here, k, add) if whole else (edge, 0, nr, 0)
            if mr == MR:
                tile(packed, i * kk, MR, b, at, nr, kk, low_a, i * rank, low_b, low, low_step, rank, out, out_at, out_step, out_add)
            elif mr == LOW:
                low_tile(packed, i * kk, LOW, b, at, nr, kk, low_a, i * rank, low_b, low, low_step, rank, out, out_at, out_step, out_add)
            else:
                pair_tile(packed, i * kk, 2, b, at, nr, kk, low_a, i * rank, low_b, low, low_step, rank, out, out_at, out_step, out_add)
            if not whole:
                _put(edge, nr, min(mr, tall - i), wide, c, here, k, add)
            i += mr


@runtime.jit
def add_product(a, s0, s1, b, low_a, low_b, low_jump, low_step, bias, c, first, last, left, right, d, k, rank, nr, depth, rows):
    """Rows first to last of C (.., k), one-dimensional, in column panels left to right: A B, + low_a low_b, + bias."""
    packed = np.empty((rows + MR) * min(depth, d), a.dtype)
    low_packed = np.empty((rows + MR) * rank, a.dtype)
    edge = np.empty(MR * nr, a.dtype)
    panels = (k + nr - 1) // nr
    for i0 in range(first, last, rows):
        tall = min(rows, last - i0)
        pack_rows(low_a, rank, 1, i0, tall, 0, rank, low_packed)
        for p0 in range(0, max(d, 1), depth):
            kk = min(depth, d - p0)
            pack_rows(a, s0, s1, i0, tall, p0, kk, packed)
            add = 1 if p0 > 0 else 0
            terms = rank if p0 + depth >= d else 0  # the low-rank terms go with the last block
            block(packed, b, p0 * panels * nr, low_packed, low_b, low_jump, low_step, terms, c, edge, i0, tall, left, right, k, nr, kk, add)
        if bias.size:
            wide = min(k, right * nr) - left * nr
            shift = bias[left * nr : left * nr + wide]
            for i in range(i0, i0 + tall):
                row = c[i * k + left * nr : i * k + left * nr + wide]
                for j in range(wide):
                    row[j] += shift[j]


@runtime.jit
def _gemm(start, stop, by_columns, a, s0, s1, b, low_a, low_b, low_jump, low_step, bias, c, n, d, k, rank, nr, depth, rows):
    """Panels start to stop of C, row panels or column panels."""
    if by_columns:
        add_product(a, s0, s1, b, low_a, low_b, low_jump, low_step, bias, c, 0, n, start, stop, d, k, rank, nr, depth, rows)
    else:
        first, last, panels = start * MR, min(stop * MR, n), (k + nr - 1) // nr
        add_product(a, s0, s1, b, low_a, low_b, low_jump, low_step, bias, c, first, last, 0, panels, d, k, rank, nr, depth, rows)


@runtime.jit(inline=True)
def _plain(a, s0, s1, b, t0, t1, c, n, d, k):
    """A small product without packing."""
    for i in range(n):
        row = c[i * k : (i + 1) * k]
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
def _batch(start, stop, a, sa, s0, s1, b, sb, t0, t1, c, n, d, k, nr, depth, rows, small):
    """Products start to stop of a stack, each by one thread: factors sa and sb entries apart."""
    packed = np.empty(1 if small else (k + nr - 1) // nr * nr * d, c.dtype)
    for at in range(start, stop):
        mine, other, out = a[at * sa :], b[at * sb :], c[at * n * k : (at + 1) * n * k]
        if small:
            _plain(mine, s0, s1, other, t0, t1, out, n, d, k)
        else:
            panels, none = (k + nr - 1) // nr, packed[:0]
            pack_b(0, panels, other, t0, t1, packed, d, k, nr, depth)
            add_product(mine, s0, s1, packed, none, none, 0, 0, none, out, 0, n, 0, panels, d, k, 0, nr, depth, rows)


def multiply(a, packed, k, *, low=None, bias=None):
    """a times a packed matrix, plus a low-rank product, plus a bias: (n, d), (d, k) packed, ((n, r), (r, k)), (k,) -> (n, k)."""
    if low is not None and low[1].shape[0] > DEPTH:
        return multiply(a, packed, k, bias=bias) + product(*low)
    n, d = a.shape
    c = empty((n, k), a.dtype)
    flat, s0, s1 = line(a)
    low_a = low_b = none = flat[:0]
    nr = columns(a.dtype)
    rank = low_jump = low_step = 0
    if low is not None:
        rank = low[1].shape[0]
        low_a = np.ascontiguousarray(low[0]).reshape(-1)
        if low[1].flags.c_contiguous:  # rows that the tile reads where they lie, and whole vectors of
            low_b, low_jump, low_step = low[1].reshape(-1), nr, k
            if k % nr:
                low_b = np.concatenate([low_b, np.zeros(nr, a.dtype)])
        else:
            low_b, low_jump, low_step = pack(low[1]), rank * nr, nr
    if not c.size:
        return c
    by_columns = n <= FEW_ROWS
    panels = -(-k // nr) if by_columns else -(-n // MR)
    grain = max(1, ALONE * panels // max(1, n * (d + rank) * k))
    shift = none if bias is None else np.ascontiguousarray(bias)
    args = (by_columns, flat, s0, s1, packed, low_a, low_b, low_jump, low_step, shift, c.reshape(-1), n, d, k, rank, nr, DEPTH, ROWS)
    runtime.parallel_for(_gemm, panels, *args, grain=grain)
    return c


def product(a, b):
    """a b: (n, d), (d, k) -> (n, k), by the way that suits its sizes and layouts."""
    (n, d), k = a.shape, b.shape[1]
    if n * d * k <= SMALL or (n <= 2 and k <= THIN and b.flags.c_contiguous):
        return _stack(a, b, 1, n, d, k)
    (flat_a, s0, s1), (flat_b, t0, t1) = line(a), line(b)
    if k <= THIN and s1 == 1 and not (n < 16 and t1 == 1):  # for few rows, turning b costs more than the product
        return dots(flat_a.reshape(n, d), np.ascontiguousarray(b.T))
    if n <= THIN and t1 == 1:
        return across(flat_a, s0, s1, n, flat_b.reshape(d, k))
    if k <= THIN:  # a^T is laid out row by row
        return np.ascontiguousarray(across(flat_b, t1, t0, k, flat_a.reshape(d, n)).T)
    if n <= THIN:  # b^T is laid out row by row
        return np.ascontiguousarray(dots(flat_b.reshape(k, d), np.ascontiguousarray(a)).T)
    return multiply(a, pack(b), k)


def _stack(a, b, count, n, d, k):
    """A stack of products, each by one thread."""
    (flat_a, s0, s1), (flat_b, t0, t1) = line(a), line(b)
    c = empty((*a.shape[:-1], k), a.dtype)
    args = (flat_a, n * d, s0, s1, flat_b, d * k, t0, t1, c.reshape(-1), n, d, k, columns(a.dtype), DEPTH, ROWS)
    runtime.parallel_for(_batch, count, *args, n * d * k <= SMALL or (n <= 2 and k <= THIN), grain=max(1, ALONE // max(1, n * d * k)))
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
