"""A weight plus a low-rank update, rounded to what the weight is stored as: one pass, block by block of columns.

The product is made by the register tile in a buffer that stays in the level-1 cache, then each row of it is added, rounded and measured.
"""

import numpy as np

from .. import runtime
from ..memory import empty
from ..reference.merge import DIGITS, EDGE, GOLDEN, LARGEST, LEAST, MIX1, MIX2, Measures
from .pack import line, pack_a, pack_b
from .tile import MR, columns, tile

BLOCK = 512  # columns of the buffer

F32, F64, I64, U16, U32, U64 = np.float32, np.float64, np.int64, np.uint16, np.uint32, np.uint64
ONE, THIRTEEN, SIXTEEN = U32(1), U32(13), U32(16)
SIGN, REST, MAGNITUDE, INFINITY = U32(0x8000), U32(0x7FFF), U32(0x7FFFFFFF), U32(0x7F800000)
# Float16 has an exponent whose bias is smaller by 112; below 2^-14 adding 0.5 puts its last bit where float32 rounds.
HALF_UP, HALF_MAGIC, HALF_MAGIC_BITS = F32(2.0**112), F32(0.5), U32(126 << 23)
HALF_LEAST, HALF_SHIFT, HALF_INFINITY = U32(113 << 23), U32((0xFFF - (112 << 23)) & 0xFFFFFFFF), U32(0x7C00)


@runtime.jit(inline=True)
def _from_bfloat16(bits):
    return U32(U32(bits) << SIXTEEN).view(F32)


@runtime.jit(inline=True)
def _to_bfloat16(number):
    """Rounded to nearest, ties to even."""
    bits = F32(number).view(U32)
    return U16(U32(bits + U32(REST + U32(U32(bits >> SIXTEEN) & ONE))) >> SIXTEEN)


@runtime.jit(inline=True)
def _from_float16(bits):
    wide = F32(U32(U32(U32(bits) & REST) << THIRTEEN).view(F32) * HALF_UP)
    return U32(wide.view(U32) | U32(U32(U32(bits) & SIGN) << SIXTEEN)).view(F32)


@runtime.jit(inline=True)
def _to_float16(number):
    """Rounded to nearest, ties to even; what is too large, infinite or NaN gets an exponent that is."""
    bits = F32(number).view(U32)
    size = U32(bits & MAGNITUDE)
    normal = U32(U32(size + U32(HALF_SHIFT + U32(U32(size >> THIRTEEN) & ONE))) >> THIRTEEN)
    small = U32(F32(size.view(F32) + HALF_MAGIC).view(U32) - HALF_MAGIC_BITS)
    new = small if size < HALF_LEAST else normal
    new = new if new < HALF_INFINITY else HALF_INFINITY
    return U16(U32(new | U32(U32(bits >> SIXTEEN) & SIGN)))


@runtime.jit(inline=True)
def _stochastic(number, draw, digits, least, largest, edge):
    """One of the two neighbours with so many digits; `draw` is below 2^32. Powers of two are made from their bits."""
    exponent = max(((F64(number).view(I64) >> I64(52)) & I64(0x7FF)) - I64(1023), least)
    scaled = number * I64((I64(1023) + digits - exponent) << I64(52)).view(F64)
    below = np.floor(scaled)
    up = F64(1) if F64(draw) < (scaled - below) * F64(4294967296.0) else F64(0)
    rounded = (below + up) * I64((I64(1023) + exponent - digits) << I64(52)).view(F64)
    return min(max(rounded, -largest), largest) if abs(number) < edge else number


@runtime.jit(inline=True)
def _draw(key, place):
    """An entry of the stream of 32-bit numbers under a key."""
    z = U64(key + U64(place + U64(1)) * GOLDEN)
    z = U64((z ^ (z >> U64(30))) * MIX1)
    z = U64((z ^ (z >> U64(27))) * MIX2)
    return U64(z ^ (z >> U64(31))) >> U64(32)


@runtime.jit(inline=True)
def _bfloat16(w, delta, out, lost, place, rounding):
    """Part of a row: out = w + delta rounded, lost = what rounding added. -> entries kept, entries that are not finite.

    `place` is that of the first entry in the array, `rounding` what stochastic rounding needs.
    """
    kept = bad = U32(0)
    for j in range(w.size):
        old = _from_bfloat16(w[j])
        total = F32(old + delta[j])
        out[j] = _to_bfloat16(total)
        new = _from_bfloat16(out[j])
        lost[j] = F32(new - old) - delta[j]
        kept = U32(kept + U32((new == old) & (delta[j] != F32(0))))
        wild = (U32(F32(total).view(U32) & MAGNITUDE) >= INFINITY) | (U32(F32(new).view(U32) & MAGNITUDE) >= INFINITY)
        bad = U32(bad + U32(wild))
    return kept, bad


@runtime.jit(inline=True)
def _float16(w, delta, out, lost, place, rounding):
    """The same for float16."""
    kept = bad = U32(0)
    for j in range(w.size):
        old = _from_float16(w[j])
        out[j] = _to_float16(F32(old + delta[j]))
        new = _from_float16(out[j])
        lost[j] = F32(new - old) - delta[j]
        kept = U32(kept + U32((new == old) & (delta[j] != F32(0))))
        bad = U32(bad + U32((U32(out[j] & HALF_INFINITY) == HALF_INFINITY) | (U32(w[j] & HALF_INFINITY) == HALF_INFINITY)))
    return kept, bad


@runtime.jit(inline=True)
def _whole(w, delta, out, lost, place, rounding):
    """The same for float32, whose product and sum are float64, and for float64."""
    kept = bad = 0
    for j in range(w.size):
        old = F64(w[j])
        out[j] = w.dtype.type(old + delta[j])
        lost[j] = (F64(out[j]) - old) - delta[j]
        kept += (out[j] == w[j]) & (delta[j] != 0)
        bad += not np.isfinite(out[j])
    return kept, bad


@runtime.jit(paste=True)
def _by_chance(read, write, w, delta, out, lost, place, rounding):
    """The same with stochastic rounding, for a kind that is read and written so."""
    key, first, digits, least, largest, edge = rounding
    kept = bad = 0
    for j in range(w.size):
        old = F64(read(w[j]))
        total = old + delta[j]
        out[j] = write(F32(_stochastic(total, _draw(key, first + U64(place + j)), digits, least, largest, edge)))
        new = F64(read(out[j]))
        lost[j] = (new - old) - delta[j]
        kept += (new == old) & (delta[j] != 0)
        bad += (not np.isfinite(total)) | (not np.isfinite(new))
    return kept, bad


@runtime.jit(inline=True)
def _same(number):
    return number


@runtime.jit(inline=True)
def _bfloat16_by_chance(w, delta, out, lost, place, rounding):
    return _by_chance(_from_bfloat16, _to_bfloat16, w, delta, out, lost, place, rounding)


@runtime.jit(inline=True)
def _float16_by_chance(w, delta, out, lost, place, rounding):
    return _by_chance(_from_float16, _to_float16, w, delta, out, lost, place, rounding)


@runtime.jit(inline=True)
def _float32_by_chance(w, delta, out, lost, place, rounding):
    return _by_chance(_same, _same, w, delta, out, lost, place, rounding)


@runtime.jit(reassociate=True, inline=True)
def _measure(delta, lost, unit):
    """Entries of delta that are not zero, and the sums of the squares of delta and lost, both times unit."""
    moved, one, two = U32(0), delta.dtype.type(0), delta.dtype.type(0)
    for j in range(delta.size):
        moved = U32(moved + U32(delta[j] != 0))
        a, b = delta[j] * unit, lost[j] * unit
        one += a * a
        two += b * b
    return moved, F64(one), F64(two)


@runtime.jit(paste=True)
def _rows(finish, w, left, right, rank, unit, out, counts, squares, nr, block, rounding):
    """The loop over a matrix whose rows `finish` makes of w, the product and what it is given besides."""
    m, n = w.shape
    delta, lost = np.empty(MR * block, left.dtype), np.empty(block, left.dtype)
    for c0 in range(0, n, block):
        wide = min(block, n - c0)
        for i0 in range(0, m, MR):
            for j in range(0, wide, nr):
                tile(left, i0 * rank, MR, right, (c0 + j) * rank, nr, rank, left, 0, right, 0, 0, 0, delta, j, block, 0)
            for q in range(min(MR, m - i0)):
                row, some = delta[q * block : q * block + wide], slice(c0, c0 + wide)
                kept, bad = finish(w[i0 + q, some], row, out[i0 + q, some], lost[:wide], (i0 + q) * n + c0, rounding)
                moved, one, two = _measure(row, lost[:wide], unit)
                counts[0] += moved
                counts[1] += kept
                counts[2] += bad
                squares[0] += one
                squares[1] += two


# One function a kind, not one made for each: Numba finds no function again in its cache that encloses another compiled one.


@runtime.jit
def _rows_bfloat16(w, left, right, rank, unit, out, counts, squares, nr, block, rounding):
    _rows(_bfloat16, w, left, right, rank, unit, out, counts, squares, nr, block, rounding)


@runtime.jit
def _rows_float16(w, left, right, rank, unit, out, counts, squares, nr, block, rounding):
    _rows(_float16, w, left, right, rank, unit, out, counts, squares, nr, block, rounding)


@runtime.jit
def _rows_whole(w, left, right, rank, unit, out, counts, squares, nr, block, rounding):
    _rows(_whole, w, left, right, rank, unit, out, counts, squares, nr, block, rounding)


@runtime.jit
def _rows_bfloat16_by_chance(w, left, right, rank, unit, out, counts, squares, nr, block, rounding):
    _rows(_bfloat16_by_chance, w, left, right, rank, unit, out, counts, squares, nr, block, rounding)


@runtime.jit
def _rows_float16_by_chance(w, left, right, rank, unit, out, counts, squares, nr, block, rounding):
    _rows(_float16_by_chance, w, left, right, rank, unit, out, counts, squares, nr, block, rounding)


@runtime.jit
def _rows_float32_by_chance(w, left, right, rank, unit, out, counts, squares, nr, block, rounding):
    _rows(_float32_by_chance, w, left, right, rank, unit, out, counts, squares, nr, block, rounding)


NEAREST = {"bfloat16": _rows_bfloat16, "float16": _rows_float16, "float32": _rows_whole, "float64": _rows_whole}
STOCHASTIC = {"bfloat16": _rows_bfloat16_by_chance, "float16": _rows_float16_by_chance, "float32": _rows_float32_by_chance}


@runtime.jit
def _pack_left(left, out):
    pack_a(left.reshape(-1), left.shape[1], 1, 0, left.shape[0], 0, left.shape[1], out, MR)


def pack_right(right):
    """The right factor (r, n) as `merge_rows` takes it for each part of the rows: one-dimensional."""
    (rank, n), (flat, s0, s1), nr = right.shape, line(right), columns(right.dtype)
    out = np.empty(-(-n // nr) * nr * rank, right.dtype)
    pack_b(0, -(-n // nr), flat, s0, s1, out, rank, n, nr, max(rank, 1))
    return out


def merge_rows(w, left, right, *, kind, unit=1.0, key=None, first=0):
    """w + left right as it is stored, and the measures: (m, n), (m, r), the packed (r, n) -> (m, n), Measures.

    left and right have the dtype of the sums. With a `key` rounding is stochastic; `first` is then the place of the first entry of w in
    its array. Numbers that are not finite are counted, and stored as anything.
    """
    (m, rank), out = left.shape, empty(w.shape, w.dtype)
    packed = np.empty(-(-m // MR) * MR * rank, left.dtype)
    _pack_left(np.ascontiguousarray(left), packed)
    counts, squares = np.zeros(3, np.int64), np.zeros(2)
    loops = NEAREST if key is None else STOCHASTIC
    rounding = np.uint64(key or 0), np.uint64(first), *(table.get(kind, 0) for table in (DIGITS, LEAST, LARGEST, EDGE))
    rounding = (*rounding[:2], *map(np.int64, rounding[2:4]), *map(np.float64, rounding[4:]))
    with np.errstate(over="ignore", invalid="ignore"):  # as plain Python, bits run over on purpose, and numbers need not be finite
        loops[kind](w, packed, right, rank, left.dtype.type(unit), out, counts, squares, columns(left.dtype), BLOCK, rounding)
    return out, Measures(*map(int, counts), *map(float, squares))
