"""The compiled loops of grouped low-rank updates. A piece is a few rows of one adapter; one thread does all of it.

Few rows an adapter is the rule, so memory decides: each factor is read once a piece, in order, where it lies. An entry of a result is
summed in one order whatever the height of its piece, so a row's bits depend neither on the rows beside it nor on the threads.
"""

import numpy as np

from .. import runtime
from .address import array_at
from .factor_grad import gradient_a, gradient_b
from .thin import STRIP
from .tile import MR
from .window import TALL, narrow_tile, pair_tile, tile

__all__ = ["arrange", "backward", "forward", "gradients", "shares_of"]

# The columns of the table, a row an adapter: the rank, addresses or 0, and places in the array of all gradients.
R, A, B, STRETCH, SHIFT, DA, DB, DSTRETCH, DSHIFT = range(9)
# Of a piece: its adapter, or -1, where its rows begin in their order, how many there are; of a share: which of how many in ROWS.
GROUP, FIRST, ROWS = range(3)
LARGE = 1 << 18  # multiplications of a share of an adapter's gradients
MOST_SHARES = 16


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
def _taken(order, first, rows, source, mask, size, out):
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
            _taken(order, first, rows, x, mask, d, taken)
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


@runtime.jit(reassociate=True)
def _dots(g, rows, k, b, r, out, width, factor):
    """factor g B^T: (rows, k), (r, k) -> (rows, width), of which r columns are written. Two rows of g and four of B at a time."""
    for i in range(0, rows, 2):
        g0, g1 = g[i * k : (i + 1) * k], g[min(i + 1, rows - 1) * k : (min(i + 1, rows - 1) + 1) * k]
        for j in range(0, r, 4):
            j1, j2, j3 = min(j + 1, r - 1), min(j + 2, r - 1), min(j + 3, r - 1)
            b0, b1, b2, b3 = b[j * k : (j + 1) * k], b[j1 * k : (j1 + 1) * k], b[j2 * k : (j2 + 1) * k], b[j3 * k : (j3 + 1) * k]
            s00 = s01 = s02 = s03 = s10 = s11 = s12 = s13 = g.dtype.type(0)
            for q in range(k):
                x0, x1 = g0[q], g1[q]
                s00 += x0 * b0[q]
                s01 += x0 * b1[q]
                s02 += x0 * b2[q]
                s03 += x0 * b3[q]
                s10 += x1 * b0[q]
                s11 += x1 * b1[q]
                s12 += x1 * b2[q]
                s13 += x1 * b3[q]
            sums = ((s00, s01, s02, s03), (s10, s11, s12, s13))
            for p in range(min(2, rows - i)):
                for q in range(min(4, r - j)):
                    out[(i + p) * width + j + q] = sums[p][q] * factor


@runtime.jit(inline=True)
def _up_turned(gb, width, first, rows, order, a, r, d, dx, turned, edge, half):
    """gb A^T into rows of dx, in order: (rows, width) of which r columns count, (d, r). The rows are the lanes of a vector."""
    for j in range(r):
        for i in range(half):
            turned[j * half + i] = gb[i * width + j] if i < rows else turned.dtype.type(0)
    for p in range(0, d, TALL):
        if d >= TALL:
            p = min(p, d - TALL)  # the last tile may take some entries again
            narrow_tile(a, p * r, r, 1, 0, 1, turned, 0, half, r, edge, 0, half, 0)
        else:
            for q in range(d):
                for i in range(rows):
                    total = edge.dtype.type(0)
                    for j in range(r):
                        total += a[q * r + j] * turned[j * half + i]
                    edge[q * half + i] = total
        for i in range(rows):
            line = dx[order[first + i] * d + p : order[first + i] * d + min(d, p + TALL)]
            for q in range(line.size):
                line[q] = edge[q * half + i]


@runtime.jit
def backward(start, stop, done, pieces, order, table, scalings, g, x, xa, mask, gz, dx, x_in, g_in, xa_in, gb_in, d, k, width, most, nr):
    """Pieces whose work begins in start to stop: gradients of product (if a row is stretched) and x, and what `gradients` sums, in order.

    x_in (n, d), g_in (n, k), xa_in and gb_in (n, width): x', the gradient before the stretch, x' A and scaling g B^T.
    """
    none, half = g[:0], nr // 2
    turned, edge = np.empty(width * half, g.dtype), np.empty(TALL * half, g.dtype)
    for piece in range(np.searchsorted(done[:-1], start), np.searchsorted(done[:-1], stop)):
        group, first, rows = pieces[piece, GROUP], pieces[piece, FIRST], pieces[piece, ROWS]
        r = table[group, R] if group >= 0 else 0
        t = array_at(table[group, STRETCH], k, g) if group >= 0 and table[group, STRETCH] else none
        mine = g_in[first * k : (first + rows) * k]
        _taken(order, first, rows, g, none, k, mine)
        if t.size:
            for i in range(rows):
                line = mine[i * k : (i + 1) * k]
                for q in range(k):
                    line[q] *= t[q]
        if gz.size:
            for i in range(rows):
                gz[order[first + i] * k : (order[first + i] + 1) * k] = mine[i * k : (i + 1) * k]
        if r:
            _taken(order, first, rows, x, mask, d, x_in[first * d : (first + rows) * d])
            _taken(order, first, rows, xa, none, width, xa_in[first * width : (first + rows) * width])
            gb = gb_in[first * width : (first + rows) * width]
            _dots(mine, rows, k, array_at(table[group, B], r * k, g), r, gb, width, scalings[group])
        if dx.size:
            if r:
                _up_turned(
                    gb_in[first * width :], width, first, rows, order, array_at(table[group, A], d * r, g), r, d, dx, turned, edge, half
                )
            for i in range(first, first + rows):
                line = dx[order[i] * d : (order[i] + 1) * d]
                if not r:
                    line[:] = 0
                elif mask.size:
                    kept = mask[order[i] * d : (order[i] + 1) * d]
                    for q in range(d):
                        line[q] *= kept[q]


@runtime.jit
def shares_of(starts, table, size):
    """Shares of the adapters' gradients, (shares, 3): adapter, which share, of how many; and what is done before each and in all."""
    groups, count = len(table), 0
    parts = np.empty(groups, np.int64)
    for at in range(groups):
        work = (starts[at + 2] - starts[at + 1]) * table[at, R] * size
        parts[at] = max(1, min(MOST_SHARES, work // LARGE))
        count += parts[at]
    shares, done = np.empty((count, 3), np.int64), np.zeros(count + 1, np.int64)
    count = 0
    for at in range(groups):
        work = (starts[at + 2] - starts[at + 1] + 4) * (table[at, R] + 1) * size
        for part in range(parts[at]):
            shares[count, 0], shares[count, 1], shares[count, 2] = at, part, parts[at]
            done[count + 1] = done[count] + work // parts[at]
            count += 1
    return shares, done


@runtime.jit
def gradients(start, stop, done, shares, starts, order, table, scalings, g, z, x_in, g_in, xa_in, gb_in, out, d, k, width, nr):
    """Shares whose work begins in start to stop of the gradients of A, B, stretch and shift; the arrays are those of `backward`."""
    edge, held = np.empty(MR * nr, g.dtype), np.zeros(STRIP * nr, g.dtype)
    for share in range(np.searchsorted(done[:-1], start), np.searchsorted(done[:-1], stop)):
        group, part, parts = shares[share, 0], shares[share, 1], shares[share, 2]
        first, last, r = starts[group + 1], starts[group + 2], table[group, R]
        tall, wide = (d + TALL - 1) // TALL, (k + nr - 1) // nr
        top, bottom, left, right = tall * part // parts, tall * (part + 1) // parts, wide * part // parts, wide * (part + 1) // parts
        if r:
            da, db = out[table[group, DA] : table[group, DA] + d * r], out[table[group, DB] : table[group, DB] + r * k]
            if first == last:
                da[top * TALL * r : min(d, bottom * TALL) * r] = 0
            xs, gs, xas, gbs = x_in[first * d :], g_in[first * k :], xa_in[first * width :], gb_in[first * width :]
            for p0 in range(0, last - first, STRIP):
                rows = min(STRIP, last - first - p0)
                gradient_a(xs, d, gbs, width, r, p0, rows, da, top, bottom, nr // 2, edge)
                gradient_b(xas, width, r, gs, k, p0, rows, db, left, right, nr, edge, held)
            for q in range(r):
                row = db[q * k + left * nr : q * k + min(k, right * nr)]
                for j in range(row.size):
                    row[j] = row[j] * scalings[group] if last > first else row.dtype.type(0)
        for stretch in range(2):
            if table[group, STRETCH if stretch else SHIFT]:
                at = table[group, DSTRETCH if stretch else DSHIFT]
                total = out[at + left * nr : at + min(k, right * nr)]
                total[:] = 0
                for i in range(first, last):
                    line = g[order[i] * k + left * nr : order[i] * k + min(k, right * nr)]
                    if stretch:
                        other = z[order[i] * k + left * nr : order[i] * k + min(k, right * nr)]
                        for j in range(total.size):
                            total[j] += line[j] * other[j]
                    else:
                        for j in range(total.size):
                            total[j] += line[j]
