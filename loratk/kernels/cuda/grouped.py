"""Grouped low-rank updates: one thread an entry, which looks up its row's adapter. All factors stand in one array for a call."""

import numpy as np
from numba import cuda

from ..reference.grouped import check_rows, groups_of, widest
from .arrays import asarray, empty, flat, numpy, zeros
from .device import launch
from .elementwise import mul
from .shape import broadcast_copy, concat

__all__ = ["grouped_lora", "grouped_lora_grad"]

# The columns of the table, a row an adapter: the rank, and places in the arrays of all factors and all gradients, -1 for none.
R, A, B, STRETCH, SHIFT = range(5)


def _table(groups, scalings, dtype):
    """The table, all factors in a row, the scalings, and places and shapes of the factors there are."""
    table, held, shapes, at = np.full((len(groups), 5), -1, np.int64), [], [], 0
    for row, group in zip(table, groups, strict=True):
        row[R] = 0 if group[0] is None else group[0].shape[1]
        for place, array in enumerate(group, A):
            if array is not None:
                row[place] = at
                held.append(flat(asarray(array)))
                shapes.append((at, at + held[-1].size, tuple(array.shape)))
                at += held[-1].size
    factors = concat(*held, axis=0) if held else empty((0,), dtype)
    return asarray(table), factors, asarray(np.array(scalings, dtype)), shapes


@cuda.jit
def _down(x, index, table, factors, out, d, width):
    i = cuda.grid(1)
    if i < out.size:
        row, column = i // width, i % width
        group, total = index[row], out.dtype.type(0)
        if group >= 0 and column < table[group, 0]:
            r, a = table[group, 0], table[group, 1]
            for p in range(d):
                total += x[row * d + p] * factors[a + p * r + column]
        out[i] = total


@cuda.jit
def _up(product, xa, index, bias, table, factors, scalings, y, z, k, width):
    i = cuda.grid(1)
    if i < y.size:
        row, column = i // k, i % k
        group, value = index[row], product[i]
        if group >= 0 and table[group, 0]:
            b, total = table[group, 2], y.dtype.type(0)
            for j in range(table[group, 0]):
                total += xa[row * width + j] * factors[b + j * k + column]
            value += scalings[group] * total
        if z.size:
            z[i] = value
        if group >= 0 and table[group, 3] >= 0:
            value *= factors[table[group, 3] + column]
        if group >= 0 and table[group, 4] >= 0:
            value += factors[table[group, 4] + column]
        y[i] = value + bias[column] if bias.size else value


@cuda.jit
def _stretched(g, index, table, factors, out, k):
    i = cuda.grid(1)
    if i < out.size:
        group = index[i // k]
        out[i] = g[i] * factors[table[group, 3] + i % k] if group >= 0 and table[group, 3] >= 0 else g[i]


@cuda.jit
def _down_turned(gz, index, table, factors, scalings, out, k, width):
    i = cuda.grid(1)
    if i < out.size:
        row, column = i // width, i % width
        group, total = index[row], out.dtype.type(0)
        if group >= 0 and column < table[group, 0]:
            b = table[group, 2] + column * k
            for q in range(k):
                total += gz[row * k + q] * factors[b + q]
            total *= scalings[group]
        out[i] = total


@cuda.jit
def _up_turned(gb, index, table, factors, out, d, width):
    i = cuda.grid(1)
    if i < out.size:
        row, p = i // d, i % d
        group, total = index[row], out.dtype.type(0)
        if group >= 0:
            a = table[group, 1] + p * table[group, 0]
            for j in range(table[group, 0]):
                total += gb[row * width + j] * factors[a + j]
        out[i] = total


@cuda.jit
def _sums(left, left_step, right, right_step, index, group, factor, out, columns):
    """out (rows, columns) = factor left^T right over the batch's rows of an adapter; a left of step 0 is a row of ones."""
    i = cuda.grid(1)
    if i < out.size:
        p, q, total = i // columns, i % columns, out.dtype.type(0)
        for row in range(index.size):
            if index[row] == group:
                total += (left[row * left_step + p] if left_step else out.dtype.type(1)) * right[row * right_step + q]
        out[i] = factor * total


def grouped_lora(product, x, index, mask, bias, *factors, scalings):
    """What each row's own adapter makes of it: (n, k), (n, d), integers (n,) -> (n, k), (n, width), (n, k) or (0, k).

    See the reference for what `factors` are.
    """
    product, x = asarray(product), asarray(x)
    groups = groups_of(factors, tuple(x.shape)[-1], tuple(product.shape)[-1])
    check_rows(product, x, numpy(index), mask, bias, len(groups))
    (n, k), (width, stretched) = product.shape, widest(groups)
    table, held, scalings, _ = _table(groups, scalings, product.dtype)
    y, z, xa = (empty(shape, product.dtype) for shape in ((n, k), (n if stretched else 0, k), (n, width)))
    index, masked = asarray(index), x if mask is None else mul(x, mask)
    launch(_down, xa.size, flat(masked), index, table, held, flat(xa), x.shape[1], width)
    shift = empty((0,), product.dtype) if bias is None else asarray(bias)
    launch(_up, y.size, flat(product), flat(xa), index, shift, table, held, scalings, flat(y), flat(z), k, width)
    return y, xa, z


def grouped_lora_grad(g, x, xa, z, index, mask, *factors, scalings, need_x=True):
    """Gradients of `grouped_lora` for the product, x (None if not `need_x`), then A, B, stretch and shift of each adapter that has them."""
    g, x, xa, z, index = (asarray(each) for each in (g, x, xa, z, index))
    groups = groups_of(factors, x.shape[1], g.shape[1])
    (n, k), d, dtype = g.shape, x.shape[1], g.dtype
    width, stretched = widest(groups)
    table, held, factor, _ = _table(groups, scalings, dtype)
    gz, gb = broadcast_copy(g, g.shape), empty((n, width), dtype)
    if stretched:
        launch(_stretched, gz.size, flat(g), index, table, held, flat(gz), k)
    launch(_down_turned, gb.size, flat(gz), index, table, held, factor, flat(gb), k, width)
    dx = zeros((n, d), dtype) if need_x else None
    if need_x and width:
        launch(_up_turned, dx.size, flat(gb), index, table, held, flat(dx), d, width)
        dx = dx if mask is None else mul(dx, mask)
    masked, none, grads = x if mask is None else mul(x, mask), empty((0,), dtype), []
    for at, (a, b, t, shift) in enumerate(groups):
        sums = []
        if a is not None:
            sums += [(masked, d, gb, width, 1.0, a.shape), (xa, width, gz, k, scalings[at], b.shape)]
        if t is not None:
            sums.append((none, 0, mul(g, z), k, 1.0, t.shape))
        if shift is not None:
            sums.append((none, 0, g, k, 1.0, shift.shape))
        for left, left_step, right, right_step, by, shape in sums:
            out = empty(tuple(shape), dtype)
            launch(_sums, out.size, flat(left), left_step, flat(right), right_step, index, at, dtype.type(by), flat(out), tuple(shape)[-1])
            grads.append(out)
    return gz, dx, *grads
