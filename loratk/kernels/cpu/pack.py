"""Packing: matrices laid out as the register tile reads them.

B is packed as [block of DEPTH rows][panel of NR columns][row][NR], A as [panel of MR rows][depth][MR]; what lies beyond the edge is
zero. Matrices come in as a one-dimensional array and two strides, so that one compiled loop serves them and their transposes.
"""

import numpy as np

from .. import runtime
from ..memory import empty
from .tile import columns

DEPTH = 1024  # rows of B in a block
GRAIN = 1 << 18  # entries a thread must get to pack for its waking to pay


@runtime.jit
def pack_b(start, stop, b, s0, s1, out, d, k, nr, depth):
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
def pack_a(a, s0, s1, i0, rows, p0, kk, out, mr):
    """Rows of A from (i0, p0), read at a[i * s0 + p * s1], as panels of mr rows."""
    for i in range(0, rows, mr):
        tall = min(mr, rows - i)
        panel = out[i * kk : (i + mr) * kk].reshape(kk, mr)
        if tall < mr:
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


def line(x):
    """A stack of matrices (.., n, d) as (1-D array, row stride, column stride) in entries, without a copy where it is laid out so."""
    n, d = x.shape[-2:]
    if not x.flags.c_contiguous:
        turned = x.swapaxes(-1, -2)
        if turned.flags.c_contiguous:
            return turned.reshape(-1), 1, n
        x = np.ascontiguousarray(x)
    return x.reshape(-1), d, 1


def pack(b):
    """A matrix (d, k) packed as the right factor of products."""
    (d, k), (flat, s0, s1), nr = b.shape, line(b), columns(b.dtype)
    panels = -(-k // nr)
    out = empty((d * panels * nr,), b.dtype)
    runtime.parallel_for(pack_b, panels, flat, s0, s1, out, d, k, nr, DEPTH, grain=max(1, GRAIN // max(1, d * nr)))
    return out
