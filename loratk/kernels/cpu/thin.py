"""Products in which one size is small, such as the rank: memory work, done without packing the large operand.

`dots` is for few columns: rows of A against rows of B^T, four by four, both read in order. `across` is for few rows of
A^T B: each row of B is read once, in order, and goes into all sums.
"""

import numpy as np

from .. import runtime
from ..memory import empty
from .pack import pack_a
from .tile import LOW, columns, low_tile

THIN = 64  # up to which size a product counts as thin
STRIP = 128  # rows of B that `across` goes through at a time
GRAIN = 1 << 22  # multiplications a thread must get for its waking to pay


@runtime.jit(reassociate=True)
def dots_loop(start, stop, a, b, c, r):
    """c[i, j] = a[i] . b[j] for groups start to stop of four rows of a; b has a multiple of four rows, of which r count."""
    n, d = a.shape
    for group in range(start, stop):
        i = 4 * group
        tall = min(4, n - i)
        a0, a1, a2, a3 = a[i], a[min(i + 1, n - 1)], a[min(i + 2, n - 1)], a[min(i + 3, n - 1)]
        for j in range(0, r, 4):
            b0, b1, b2, b3 = b[j], b[j + 1], b[j + 2], b[j + 3]
            s00 = s01 = s02 = s03 = s10 = s11 = s12 = s13 = a.dtype.type(0)
            s20 = s21 = s22 = s23 = s30 = s31 = s32 = s33 = a.dtype.type(0)
            for p in range(d):
                x0, x1, x2, x3 = a0[p], a1[p], a2[p], a3[p]
                y0, y1, y2, y3 = b0[p], b1[p], b2[p], b3[p]
                s00 += x0 * y0
                s01 += x0 * y1
                s02 += x0 * y2
                s03 += x0 * y3
                s10 += x1 * y0
                s11 += x1 * y1
                s12 += x1 * y2
                s13 += x1 * y3
                s20 += x2 * y0
                s21 += x2 * y1
                s22 += x2 * y2
                s23 += x2 * y3
                s30 += x3 * y0
                s31 += x3 * y1
                s32 += x3 * y2
                s33 += x3 * y3
            block = ((s00, s01, s02, s03), (s10, s11, s12, s13), (s20, s21, s22, s23), (s30, s31, s32, s33))
            for q in range(tall):
                for t in range(min(4, r - j)):
                    c[i + q, j + t] = block[q][t]


def dots(a, b):
    """a b^T, both contiguous, b with few rows: (n, d), (r, d) -> (n, r)."""
    (n, d), r = a.shape, len(b)
    out = empty((n, r), a.dtype)
    if r % 4:
        b = np.concatenate([b, np.zeros((-r % 4, d), b.dtype)])
    groups = -(-n // 4)
    runtime.parallel_for(dots_loop, groups, a, b, out, r, grain=max(1, GRAIN * groups // max(1, n * d * r)))
    return out


@runtime.jit
def across_loop(start, stop, a, b, c, n, m, k, nr, strip):
    """Column panels start to stop of C (m, k) = A^T B; a packed as panels of LOW rows of A^T."""
    edge = np.empty(LOW * nr, c.dtype)
    last = np.empty(strip * nr, c.dtype)
    for p0 in range(0, n, strip):
        kk = min(strip, n - p0)
        add = 1 if p0 > 0 else 0
        for j in range(start, stop):
            wide = min(nr, k - j * nr)
            if wide < nr:  # the tile reads whole vectors
                last[:] = 0
                for p in range(kk):
                    for q in range(wide):
                        last[p * nr + q] = b[(p0 + p) * k + j * nr + q]
            for i in range(0, m, LOW):
                tall = min(LOW, m - i)
                here = i * k + j * nr
                if wide == nr and tall == LOW:
                    low_tile(a, i * n + p0 * LOW, LOW, b, p0 * k + j * nr, k, kk, a, 0, b, 0, 0, 0, c, here, k, add)
                    continue
                if wide == nr:
                    low_tile(a, i * n + p0 * LOW, LOW, b, p0 * k + j * nr, k, kk, a, 0, b, 0, 0, 0, edge, 0, nr, 0)
                else:
                    low_tile(a, i * n + p0 * LOW, LOW, last, 0, nr, kk, a, 0, b, 0, 0, 0, edge, 0, nr, 0)
                for q in range(tall):
                    for t in range(wide):
                        old = c[here + q * k + t] if add else edge.dtype.type(0)
                        c[here + q * k + t] = old + edge[q * nr + t]


@runtime.jit
def _pack_rows(start, stop, a, s0, s1, m, n, out):
    """Panels start to stop of LOW rows of a matrix (m, n), read at a[i * s0 + p * s1]."""
    for panel in range(start, stop):
        i = panel * LOW
        pack_a(a, s0, s1, i, min(LOW, m - i), 0, n, out[i * n : (i + LOW) * n], LOW)


def across(a, s0, s1, m, b):
    """A b for a matrix (m, n) of few rows, read at a[i * s0 + p * s1], and a contiguous b: (n, k) -> (m, k)."""
    n, k = b.shape
    nr = columns(b.dtype)
    panels = -(-m // LOW)
    packed = empty((panels * LOW * n,), b.dtype)
    _pack_rows(0, panels, a, s0, s1, m, n, packed)
    out = empty((m, k), b.dtype)
    wide = -(-k // nr)
    grain = max(1, GRAIN * wide // max(1, n * m * k))
    runtime.parallel_for(across_loop, wide, packed, b.reshape(-1), out.reshape(-1), n, m, k, nr, STRIP, grain=grain)
    return out
