"""Normalisation over the last axis: rows stay in cache from their first reading to their last."""

import numpy as np

from ..memory import empty
from ..runtime import jit, parallel_for
from .split import as_rows, row_grain

__all__ = ["layer_norm", "layer_norm_grad", "rms_norm", "rms_norm_grad"]

BLOCK = 32  # rows whose share of a column sum is added up on its own, so that threads do not change the sum


@jit(reassociate=True)
def _layer_norm(start, stop, x, w, b, eps, out, mean, rstd):
    for i in range(start, stop):
        row, result = x[i], out[i]
        total = x.dtype.type(0)
        for j in range(row.size):
            total += row[j]
        middle = x.dtype.type(total / row.size)
        spread = x.dtype.type(0)
        for j in range(row.size):
            spread += (row[j] - middle) * (row[j] - middle)
        factor = x.dtype.type(1 / np.sqrt(spread / row.size + eps))
        mean[i], rstd[i] = middle, factor
        for j in range(row.size):
            result[j] = (row[j] - middle) * factor * w[j] + b[j]


def layer_norm(x, w, b, *, eps):
    """(x - mean) rstd w + b, the mean, and rstd = 1 / sqrt(var + eps): (n, k), (k,), (k,) -> (n, k), (n,), (n,).

    Ba et al. 2016, eq. 4, with the biased variance.
    """
    x, w, b = as_rows(x), np.ascontiguousarray(w), np.ascontiguousarray(b)
    n, k = x.shape
    out, mean, rstd = empty(x.shape, x.dtype), np.empty(n, x.dtype), np.empty(n, x.dtype)
    parallel_for(_layer_norm, n, x, w, b, float(eps), out, mean, rstd, grain=row_grain(k))
    return out, mean, rstd


@jit(reassociate=True)
def _layer_norm_grad(start, stop, g, x, w, mean, rstd, dx, dw, db):
    for block in range(start, stop):
        weight, bias = dw[block], db[block]
        for i in range(block * BLOCK, min((block + 1) * BLOCK, len(x))):
            above, row, result, middle, factor = g[i], x[i], dx[i], mean[i], rstd[i]
            level, inner = x.dtype.type(0), x.dtype.type(0)
            for j in range(row.size):
                normal = (row[j] - middle) * factor
                level += above[j] * w[j]
                inner += above[j] * w[j] * normal
                weight[j] += above[j] * normal
                bias[j] += above[j]
            level, inner = x.dtype.type(level / row.size), x.dtype.type(inner / row.size)
            for j in range(row.size):
                result[j] = factor * (above[j] * w[j] - level - (row[j] - middle) * factor * inner)


def layer_norm_grad(g, x, w, mean, rstd):
    """Gradients of `layer_norm` for x, w and b: (n, k) -> (n, k), (k,), (k,)."""
    g, x, w, mean, rstd = (np.ascontiguousarray(array) for array in (g, x, w, mean, rstd))
    dx, dw, db = empty(x.shape, x.dtype), _blocks(x), _blocks(x)
    parallel_for(_layer_norm_grad, len(dw), g, x, w, mean, rstd, dx, dw, db, grain=row_grain(BLOCK * x.shape[1]))
    return dx, np.sum(dw, axis=0), np.sum(db, axis=0)


def _blocks(x):
    return np.zeros((-(-len(x) // BLOCK), x.shape[1]), x.dtype)


@jit(reassociate=True)
def _rms_norm(start, stop, x, w, eps, out, rstd):
    for i in range(start, stop):
        row, result = x[i], out[i]
        total = x.dtype.type(0)
        for j in range(row.size):
            total += row[j] * row[j]
        factor = x.dtype.type(1 / np.sqrt(total / row.size + eps))
        rstd[i] = factor
        for j in range(row.size):
            result[j] = row[j] * factor * w[j]


def rms_norm(x, w, *, eps):
    """x rstd w and rstd = 1 / sqrt(mean(x^2) + eps): (n, k), (k,) -> (n, k), (n,). Zhang & Sennrich 2019, eq. 4."""
    x, w = as_rows(x), np.ascontiguousarray(w)
    out, rstd = empty(x.shape, x.dtype), np.empty(len(x), x.dtype)
    parallel_for(_rms_norm, len(x), x, w, float(eps), out, rstd, grain=row_grain(x.shape[1]))
    return out, rstd


@jit(reassociate=True)
def _rms_norm_grad(start, stop, g, x, w, rstd, dx, dw):
    for block in range(start, stop):
        weight = dw[block]
        for i in range(block * BLOCK, min((block + 1) * BLOCK, len(x))):
            above, row, result, factor = g[i], x[i], dx[i], rstd[i]
            inner = x.dtype.type(0)
            for j in range(row.size):
                normal = row[j] * factor
                inner += above[j] * w[j] * normal
                weight[j] += above[j] * normal
            inner = x.dtype.type(inner / row.size)
            for j in range(row.size):
                result[j] = factor * (above[j] * w[j] - row[j] * factor * inner)


def rms_norm_grad(g, x, w, rstd):
    """Gradients of `rms_norm` for x and w: (n, k) -> (n, k), (k,)."""
    g, x, w, rstd = (np.ascontiguousarray(array) for array in (g, x, w, rstd))
    dx, dw = empty(x.shape, x.dtype), _blocks(x)
    parallel_for(_rms_norm_grad, len(dw), g, x, w, rstd, dx, dw, grain=row_grain(BLOCK * x.shape[1]))
    return dx, np.sum(dw, axis=0)
