"""The gradients of thin factors: sums over rows of a batch, shared out by what they write."""

from .. import runtime
from .tile import LOW, low_tile
from .window import TALL, narrow_tile

__all__ = ["gradient_a", "gradient_b"]


@runtime.jit(inline=True)
def gradient_a(x, d, gb, rp, r, p0, n, out, start, stop, half, edge):
    """Panels start to stop, of TALL rows, of dA = x^T gb, (d, r): the sum over n rows from p0 on, added if these are not the first."""
    add = 1 if p0 > 0 else 0
    for at in range(start * TALL, min(d, stop * TALL), TALL):
        skip = max(0, at + TALL - d)
        for j in range(0, r, half):
            wide = min(half, r - j)
            if skip == 0 and wide == half:
                narrow_tile(x, p0 * d + at, 1, d, 0, 1, gb, p0 * rp + j, rp, n, out, at * r + j, r, add)
            elif d >= TALL:  # the last tile takes some rows again, and leaves them out
                narrow_tile(x, p0 * d + at - skip, 1, d, 0, 1, gb, p0 * rp + j, rp, n, edge, 0, half, 0)
                for p in range(skip, TALL):
                    for q in range(wide):
                        spot = (at - skip + p) * r + j + q
                        out[spot] = (out[spot] if add else edge.dtype.type(0)) + edge[p * half + q]
            else:
                for p in range(d):
                    for q in range(j, j + wide):
                        total = out[p * r + q] if add else edge.dtype.type(0)
                        for i in range(p0, p0 + n):
                            total += x[i * d + p] * gb[i * rp + q]
                        out[p * r + q] = total


@runtime.jit(inline=True)
def gradient_b(xa, rp, r, g, k, p0, n, out, start, stop, nr, edge, held):
    """Panels start to stop, of nr columns, of (x A)^T g, (r, k), as in `gradient_a`."""
    add = 1 if p0 > 0 else 0
    for j in range(start * nr, min(k, stop * nr), nr):
        wide = min(nr, k - j)
        source, at, step = g, p0 * k + j, k
        if wide < nr:  # the tile reads whole vectors
            source, at, step = held, 0, nr
            for p in range(n):
                for q in range(wide):
                    held[p * nr + q] = g[(p0 + p) * k + j + q]
        for i in range(0, r, LOW):
            tall = min(LOW, r - i)
            if wide == nr and tall == LOW:
                low_tile(xa, p0 * rp + i, rp, source, at, step, n, xa, 0, source, 0, 0, 0, out, i * k + j, k, add)
                continue
            low_tile(xa, p0 * rp + i, rp, source, at, step, n, xa, 0, source, 0, 0, 0, edge, 0, nr, 0)
            for q in range(tall):
                for t in range(wide):
                    spot = (i + q) * k + j + t
                    out[spot] = (out[spot] if add else edge.dtype.type(0)) + edge[q * nr + t]
