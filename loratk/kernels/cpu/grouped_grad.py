"""The compiled loops of grouped low-rank updates, backward: pieces of rows first, then shares of the adapters' gradients."""

import numpy as np

from .. import runtime
from .address import array_at
from .factor_grad import gradient_a, gradient_b
from .grouped_loops import DA, DB, DSHIFT, DSTRETCH, FIRST, GROUP, ROWS, SHIFT, STRETCH, A, B, R, take
from .thin import STRIP
from .tile import MR
from .window import TALL, narrow_tile, tile

__all__ = ["backward", "gradients", "shares_of"]

LARGE = 1 << 18  # multiplications of a share of an adapter's gradients
MOST_SHARES = 16
FEW = 4  # rows of an adapter up to which tiles are not worth their beginning and end


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

    x_in (n, d), g_in (n, k), xa_in and gb_in (n, width), all longer by a vector: x', the gradient before the stretch, scaling x' A, and
    scaling g B^T.
    """
    none, half = g[:0], nr // 2
    turned, edge = np.empty(width * half, g.dtype), np.empty(TALL * half, g.dtype)
    for piece in range(np.searchsorted(done[:-1], start), np.searchsorted(done[:-1], stop)):
        group, first, rows = pieces[piece, GROUP], pieces[piece, FIRST], pieces[piece, ROWS]
        r = table[group, R] if group >= 0 else 0
        t = array_at(table[group, STRETCH], k, g) if group >= 0 and table[group, STRETCH] else none
        mine = g_in[first * k : (first + rows) * k]
        take(order, first, rows, g, none, k, mine)
        if t.size:
            for i in range(rows):
                line = mine[i * k : (i + 1) * k]
                for q in range(k):
                    line[q] *= t[q]
        if gz.size:
            for i in range(rows):
                gz[order[first + i] * k : (order[first + i] + 1) * k] = mine[i * k : (i + 1) * k]
        if r:
            take(order, first, rows, x, mask, d, x_in[first * d : (first + rows) * d])
            scaled = xa_in[first * width : (first + rows) * width]
            take(order, first, rows, xa, none, width, scaled)
            scaled *= scalings[group]
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


@runtime.jit(inline=True)
def _few_a(x, d, gb, width, r, rows, da, top, bottom, nr, edge):
    """Panels top to bottom, of TALL rows, of dA = x^T gb, (d, r), over few rows; gb may be read a vector too far.

    Tiles write whole vectors: what they write too far, into the next rows, is written again, as columns go from last to first. Where that
    would go beyond the last row, which is another's, a copy is made.
    """
    for panel in range(top, bottom):
        at = min(panel * TALL, d - TALL)
        for j in range((r - 1) // nr * nr, -1, -nr):
            if at == panel * TALL and (at + TALL - 1) * r + j + nr <= min(d, bottom * TALL) * r:
                tile(x, at, 1, d, 0, 1, gb, j, width, rows, da, at * r + j, r, 0)
            else:
                tile(x, at, 1, d, 0, 1, gb, j, width, rows, edge, 0, nr, 0)
                for p in range(panel * TALL - at, TALL):
                    for q in range(min(nr, r - j)):
                        da[(at + p) * r + j + q] = edge[p * nr + q]


@runtime.jit
def _few_b(xa, width, r, g, k, rows, db, left, right):
    """Columns left to right of dB = xa^T g, (r, k), over few rows, line by line."""
    for j in range(r):
        line = db[j * k + left : j * k + right]
        for i in range(0, rows, 2):
            a, one = xa[i * width + j], g[i * k + left : i * k + right]
            if i + 1 < rows:
                b, two = xa[(i + 1) * width + j], g[(i + 1) * k + left : (i + 1) * k + right]
                if i:
                    for q in range(line.size):
                        line[q] += a * one[q] + b * two[q]
                else:
                    for q in range(line.size):
                        line[q] = a * one[q] + b * two[q]
            elif i:
                for q in range(line.size):
                    line[q] += a * one[q]
            else:
                for q in range(line.size):
                    line[q] = a * one[q]


@runtime.jit
def gradients(start, stop, done, shares, starts, order, table, g, z, x_in, g_in, xa_in, gb_in, out, d, k, width, nr):
    """Shares whose work begins in start to stop of the gradients of A, B, stretch and shift; the arrays are those of `backward`."""
    edge, held = np.empty(MR * nr, g.dtype), np.zeros(STRIP * nr, g.dtype)
    for number in range(np.searchsorted(done[:-1], start), np.searchsorted(done[:-1], stop)):
        group, part, parts = shares[number, 0], shares[number, 1], shares[number, 2]
        first, last, r = starts[group + 1], starts[group + 2], table[group, R]
        tall, wide = (d + TALL - 1) // TALL, (k + nr - 1) // nr
        top, bottom, left, right = tall * part // parts, tall * (part + 1) // parts, wide * part // parts, wide * (part + 1) // parts
        if r:
            da, db = out[table[group, DA] : table[group, DA] + d * r], out[table[group, DB] : table[group, DB] + r * k]
            if first == last:
                for q in range(r):
                    db[q * k + left * nr : q * k + min(k, right * nr)] = 0
                da[top * TALL * r : min(d, bottom * TALL) * r] = 0
            xs, gs, xas, gbs = x_in[first * d :], g_in[first * k :], xa_in[first * width :], gb_in[first * width :]
            if 0 < last - first <= FEW and d >= TALL:
                _few_a(xs, d, gbs, width, r, last - first, da, top, bottom, nr, edge)
                _few_b(xas, width, r, gs, k, last - first, db, left * nr, min(k, right * nr))
                first = last
            for p0 in range(0, last - first, STRIP):
                rows = min(STRIP, last - first - p0)
                gradient_a(xs, d, gbs, width, r, p0, rows, da, top, bottom, nr // 2, edge)
                gradient_b(xas, width, r, gs, k, p0, rows, db, left, right, nr, edge, held)
            first = starts[group + 1]
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
