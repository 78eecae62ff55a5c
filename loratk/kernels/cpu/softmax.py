"""Softmax, its logarithm, and the cross-entropy loss: one compiled loop over rows each."""

import numpy as np

from .. import reference
from ..reference.softmax import mse, mse_grad
from ..runtime import jit, parallel_for
from . import vmath
from .split import as_rows, row_grain, row_index

__all__ = ["cross_entropy", "cross_entropy_grad", "log_softmax", "log_softmax_grad", "mse", "mse_grad", "softmax", "softmax_grad"]


def _by_rows(loop, *arrays):
    rows = [as_rows(array) for array in arrays]
    out = np.empty_like(rows[0])
    parallel_for(loop, len(out), *rows, out, grain=row_grain(out.shape[1]))
    return out.reshape(arrays[0].shape)


@jit(reassociate=True)
def _softmax(start, stop, x, out):
    one = x.dtype.type(1)
    for i in range(start, stop):
        row, result = x[i], out[i]
        shift = vmath.largest(row)
        total = x.dtype.type(0)
        for j in range(row.size):
            e = vmath.exp(row[j] - shift)
            result[j] = e
            total += e
        factor = one / total
        for j in range(row.size):
            result[j] *= factor


def softmax(x):
    """e^x / sum e^x over the last axis, shifted by the maximum: (..., k) -> (..., k)."""
    return _by_rows(_softmax, x) if x.size else reference.softmax.softmax(x)


@jit(reassociate=True)
def _softmax_grad(start, stop, g, y, out):
    for i in range(start, stop):
        above, row, result = g[i], y[i], out[i]
        inner = g.dtype.type(0)
        for j in range(row.size):
            inner += above[j] * row[j]
        for j in range(row.size):
            result[j] = row[j] * (above[j] - inner)


def softmax_grad(g, y):
    """y (g - sum(g y)), y being softmax(x)."""
    return _by_rows(_softmax_grad, g, y)


@jit(reassociate=True)
def _log_softmax(start, stop, x, out):
    for i in range(start, stop):
        row, result = x[i], out[i]
        shift = vmath.largest(row)
        total = x.dtype.type(0)
        for j in range(row.size):
            shifted = row[j] - shift
            result[j] = shifted
            total += vmath.exp(shifted)
        log_total = np.log(total)
        for j in range(row.size):  # from memory: reassociated, x - (shift + log_total) would lose what a confident row has
            result[j] -= log_total


def log_softmax(x):
    """x - log sum e^x over the last axis, shifted by the maximum."""
    return _by_rows(_log_softmax, x) if x.size else reference.softmax.log_softmax(x)


@jit(reassociate=True)
def _log_softmax_grad(start, stop, g, y, out):
    for i in range(start, stop):
        above, row, result = g[i], y[i], out[i]
        total = g.dtype.type(0)
        for j in range(row.size):
            total += above[j]
        for j in range(row.size):
            result[j] = above[j] - vmath.exp(row[j]) * total


def log_softmax_grad(g, y):
    """g - e^y sum(g), y being log_softmax(x)."""
    return _by_rows(_log_softmax_grad, g, y)


def cross_entropy(logits, labels, *, ignore_index=-100, smoothing=0.0):
    """Mean over the rows whose label is not `ignore_index` of -sum_j q_j log softmax(logits)_j, and log softmax.

    (n, k), integers (n,) -> (), (n, k). The target q is (1 - smoothing) on the label plus smoothing / k everywhere
    (Szegedy et al. 2016, section 7). NaN when every row is ignored, as a mean over nothing is.
    """
    logp = log_softmax(logits)
    return reference.softmax.label_loss(logp, labels, ignore_index=ignore_index, smoothing=smoothing), logp


@jit
def _cross_entropy_grad(start, stop, logp, labels, kept, factor, target, uniform, out):
    for i in range(start, stop):
        row, result = logp[i], out[i]
        if kept[i]:
            for j in range(row.size):
                result[j] = (vmath.exp(row[j]) - uniform) * factor
            result[labels[i]] = (vmath.exp(row[labels[i]]) - uniform - target) * factor
        else:
            result[:] = 0


def cross_entropy_grad(g, logp, labels, *, ignore_index=-100, smoothing=0.0):
    """Gradient of `cross_entropy` for the logits: g () times (softmax - q) / rows kept, ignored rows 0."""
    kept = labels != ignore_index
    k, kind, out = logp.shape[1], logp.dtype.type, np.empty(logp.shape, logp.dtype)
    factor, target, uniform = kind(g / max(np.sum(kept), 1)), kind(1 - smoothing), kind(smoothing / max(k, 1))
    labels = row_index(np.where(kept, labels, 0), k)
    logp = np.ascontiguousarray(logp)
    parallel_for(_cross_entropy_grad, len(out), logp, labels, kept, factor, target, uniform, out, grain=row_grain(k))
    return out
