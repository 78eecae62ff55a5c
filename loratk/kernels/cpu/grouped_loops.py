"""The compiled loops of grouped low-rank updates, forward. A piece is a few rows of one adapter; one thread does all of it.

Few rows an adapter is the rule, so memory decides: each factor is read once a piece, in order, where it lies. An entry of a result is
summed in one order whatever the height of its piece, so a row's bits depend neither on the rows beside it nor on the threads.
"""

import numpy as np

from .. import runtime
from ..spin import share
from .address import DOUBLE, SINGLE, WORDS, array_at
from .window import TALL, pair_tile, tile

__all__ = ["arrange", "forward", "forward_double", "forward_single", "share_forward"]

# The columns of the table, a row an adapter: the rank, addresses or 0, and places in the array of all gradients.
R, A, B, STRETCH, SHIFT, DA, DB, DSTRETCH, DSHIFT = range(9)
# Of a piece: its adapter, or -1, where its rows begin in their order, and how many there are.
GROUP, FIRST, ROWS = range(3)


@runtime.jit
def arrange(index, table, most, size):
    """Rows in the order of their adapters (n,), where each adapter's begin (groups + 2,), those without first, and pieces of `most` rows.

    With the pieces (pieces, 3) comes what is done before each and in all, in multiplications; `size` is d + k.
    """
    groups = len(table)
    starts, order = np.zeros(groups + 2, np.int64), np.empty(index.size, np.int64)
    for i in range(index.size):
        starts[index[i] + 2] += 1
    count = 0
    for at in range(1, groups + 2):
        count += (starts[at] + most - 1) // most
        starts[at] += starts[at - 1]
    free = starts.copy()
    for i in range(index.size):
        order[free[index[i] + 1]] = i
        free[index[i] + 1] += 1
    pieces, done = np.empty((count, 3), np.int64), np.zeros(count + 1, np.int64)
    count = 0
    for at in range(groups + 1):
        rank = table[at - 1, R] if at else 0
        for first in range(starts[at], starts[at + 1], most):
            rows = min(most, starts[at + 1] - first)
            pieces[count, GROUP], pieces[count, FIRST], pieces[count, ROWS] = at - 1, first, rows
            done[count + 1] = done[count] + size * (rows + rank * (rows + 2))  # reading a factor takes as long as two rows
            count += 1
    return order, starts, pieces, done


@runtime.jit(inline=True)
def take(order, first, rows, source, mask, size, out):
    """Rows of a matrix of `size` columns, in order, times the mask if there is one."""
    for i in range(rows):
        at = order[first + i] * size
        line, to = source[at : at + size], out[i * size : (i + 1) * size]
        if mask.size:
            kept = mask[at : at + size]
            for q in range(size):
                to[q] = line[q] * kept[q]
        else:
            for q in range(size):
                to[q] = line[q]


@runtime.jit(inline=True)
def _down(x, rows, d, a, r, out, wide, nr, tail):
    """rows of x A: (rows, d), (d, r) -> (rows, wide), whose columns from r on are filled with anything.

    Tiles read whole vectors, so the last rows of A are taken from a longer copy.
    """
    last = min(d, (nr + r - 1) // r)
    cut = d - last
    for q in range(last * r):
        tail[q] = a[cut * r + q]
    for q in range(last * r, last * r + nr):
        tail[q] = 0
    for j in range(0, r, nr):
        i = 0
        while i < rows:
            if rows - i > TALL // 2:
                if cut:
                    tile(x, i * d, d, 1, 0, 1, a, j, r, cut, out, i * wide + j, wide, 0)
                tile(x, i * d + cut, d, 1, 0, 1, tail, j, r, last, out, i * wide + j, wide, 1 if cut else 0)
                i += TALL
            else:
                if cut:
                    pair_tile(x, i * d, d, 1, 0, 1, a, j, r, cut, out, i * wide + j, wide, 0)
                pair_tile(x, i * d + cut, d, 1, 0, 1, tail, j, r, last, out, i * wide + j, wide, 1 if cut else 0)
                i += 2


@runtime.jit(inline=True)
def _up(low, wide, first, rows, order, b, r, k, y, idle):
    """Add low B to rows of y, in order: (rows, wide) of which r columns count, (r, k). Two rows at a time: B is read half as often."""
    for j in range(0, r - r % 4, 4):
        b0, b1, b2, b3 = b[j * k : (j + 1) * k], b[(j + 1) * k : (j + 2) * k], b[(j + 2) * k : (j + 3) * k], b[(j + 3) * k : (j + 4) * k]
        for i in range(0, rows, 2):
            at, other = i * wide + j, (i + 1) * wide + j
            y0 = y[order[first + i] * k : (order[first + i] + 1) * k]
            y1 = y[order[first + i + 1] * k : (order[first + i + 1] + 1) * k] if i + 1 < rows else idle
            p0, p1, p2, p3 = low[at], low[at + 1], low[at + 2], low[at + 3]
            q0, q1, q2, q3 = low[other], low[other + 1], low[other + 2], low[other + 3]
            for q in range(k):
                y0[q] += p0 * b0[q] + p1 * b1[q] + p2 * b2[q] + p3 * b3[q]
                y1[q] += q0 * b0[q] + q1 * b1[q] + q2 * b2[q] + q3 * b3[q]
    for j in range(r - r % 4, r):
        line = b[j * k : (j + 1) * k]
        for i in range(rows):
            y0, p0 = y[order[first + i] * k : (order[first + i] + 1) * k], low[i * wide + j]
            for q in range(k):
                y0[q] += p0 * line[q]


@runtime.jit
def forward(start, stop, done, pieces, order, table, scalings, product, x, mask, bias, y, z, xa, d, k, width, most, nr):
    """Pieces whose work begins in start to stop: see `reference.grouped`."""
    tall, wide = (most + TALL - 1) // TALL * TALL, (width + nr - 1) // nr * nr
    taken, low, tail, idle = (
        np.zeros(tall * d, x.dtype),
        np.zeros(tall * wide, x.dtype),
        np.zeros(2 * nr + width, x.dtype),
        np.zeros(k, x.dtype),
    )
    for piece in range(np.searchsorted(done[:-1], start), np.searchsorted(done[:-1], stop)):
        group, first, rows = pieces[piece, GROUP], pieces[piece, FIRST], pieces[piece, ROWS]
        r = table[group, R] if group >= 0 else 0
        for i in range(first, first + rows):
            line, to = product[order[i] * k : (order[i] + 1) * k], y[order[i] * k : (order[i] + 1) * k]
            for q in range(k):
                to[q] = line[q]
        if r:
            take(order, first, rows, x, mask, d, taken)
            _down(taken, rows, d, array_at(table[group, A], d * r, x), r, low, wide, nr, tail)
        for i in range(rows):
            to = xa[order[first + i] * width : (order[first + i] + 1) * width]
            for q in range(width):
                to[q] = low[i * wide + q] if q < r else x.dtype.type(0)
            for q in range(r):
                low[i * wide + q] *= scalings[group]
        if r:
            _up(low, wide, first, rows, order, array_at(table[group, B], r * k, x), r, k, y, idle)
        t = array_at(table[group, STRETCH], k, x) if group >= 0 and table[group, STRETCH] else bias[:0]
        shift = array_at(table[group, SHIFT], k, x) if group >= 0 and table[group, SHIFT] else bias[:0]
        for i in range(first, first + rows):
            to = y[order[i] * k : (order[i] + 1) * k]
            if z.size:
                z[order[i] * k : (order[i] + 1) * k] = to
            if t.size:
                for q in range(k):
                    to[q] *= t[q]
            if shift.size:
                for q in range(k):
                    to[q] += shift[q]
            if bias.size:
                for q in range(k):
                    to[q] += bias[q]


# The same by address, for threads that share the work: its arguments stand in an array of addresses and sizes.


@runtime.jit(paste=True)
def _forward_part(start, stop, argument, like):
    box = array_at(argument, 31, WORDS)
    done, pieces = array_at(box[0], box[1], WORDS), array_at(box[2], box[3], WORDS).reshape(box[3] // 3, 3)
    order, table = array_at(box[4], box[5], WORDS), array_at(box[6], box[7], WORDS).reshape(box[7] // 9, 9)
    scalings, product, x = array_at(box[8], box[9], like), array_at(box[10], box[11], like), array_at(box[12], box[13], like)
    mask, bias, y = array_at(box[14], box[15], like), array_at(box[16], box[17], like), array_at(box[18], box[19], like)
    z, xa = array_at(box[20], box[21], like), array_at(box[22], box[23], like)
    d, k, width, most, nr = box[24], box[25], box[26], box[27], box[28]
    forward(start, stop, done, pieces, order, table, scalings, product, x, mask, bias, y, z, xa, d, k, width, most, nr)


@runtime.by_address
def forward_single(start, stop, argument):
    """`forward` of float32."""
    _forward_part(start, stop, argument, SINGLE)


@runtime.by_address
def forward_double(start, stop, argument):
    """`forward` of float64."""
    _forward_part(start, stop, argument, DOUBLE)


@runtime.jit
def share_forward(
    mails, workers, function, grain, patience, done, pieces, order, table, scalings, product, x, mask, bias, y, z, xa, d, k, width, most, nr
):
    """All pieces, on the threads that are there; returns how many."""
    box = np.empty(31, np.int64)
    box[0], box[1], box[2], box[3] = done.ctypes.data, done.size, pieces.ctypes.data, pieces.size
    box[4], box[5], box[6], box[7] = order.ctypes.data, order.size, table.ctypes.data, table.size
    box[8], box[9], box[10], box[11] = scalings.ctypes.data, scalings.size, product.ctypes.data, product.size
    box[12], box[13], box[14], box[15] = x.ctypes.data, x.size, mask.ctypes.data, mask.size
    box[16], box[17], box[18], box[19] = bias.ctypes.data, bias.size, y.ctypes.data, y.size
    box[20], box[21], box[22], box[23] = z.ctypes.data, z.size, xa.ctypes.data, xa.size
    box[24], box[25], box[26], box[27], box[28] = d, k, width, most, nr
    return share(mails, workers, function, done[-1], grain, patience, box.ctypes.data)
