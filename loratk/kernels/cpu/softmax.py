"""Softmax, its logarithm, and the cross-entropy loss: one compiled loop over rows each."""

import numpy as np

from .. import reference
from ..memory import empty
from ..runtime import jit, parallel_for
from . import vmath
from .split import GRAIN, as_rows, flat, row_grain, row_index

__all__ = ["cross_entropy", "cross_entropy_grad", "log_softmax", "log_softmax_grad", "mse", "mse_grad", "softmax", "softmax_grad"]


SMALL = 1 << 14  # entries up to which a loss is one compiled call on one thread


def _by_rows(loop, *arrays):
    shape = arrays[0].shape
    rows = [as_rows(array) for array in arrays]
    out = empty(rows[0].shape, rows[0].dtype)
    parallel_for(loop, len(out), *rows, out, grain=row_grain(out.shape[1]))
    return out if len(shape) == 2 else out.reshape(shape)


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
    labels = _labels(labels)
    if 0 < logits.size <= SMALL:
        logits, logp = np.ascontiguousarray(logits), np.empty(logits.shape, logits.dtype)
        total, kept, sound = _small_loss(logits, labels, ignore_index, float(smoothing), logp)
    else:
        logp = log_softmax(logits)
        total, kept, sound = _label_loss(logp, labels, ignore_index, float(smoothing))
    _check(sound, labels, ignore_index, logp.shape[1])
    return np.asarray(total / kept if kept else np.nan, logp.dtype), logp


@jit
def _label_loss(logp, labels, ignore_index, smoothing):
    """The sum of the losses of the rows kept, how many these are, and whether their labels are columns."""
    n, k = logp.shape
    total, kept, one = np.float64(0), 0, np.float64(1)
    for i in range(n):
        label = labels[i]
        if label != ignore_index:
            if label < 0 or label >= k:
                return total, kept, False
            each = np.float64(-logp[i, label])
            if smoothing != 0:  # without it, a class ruled out by -infinity costs nothing
                mean = np.float64(0)
                for j in range(k):
                    mean += logp[i, j]
                each = (one - smoothing) * each - smoothing * (mean / k)
            total += each
            kept += 1
    return total, kept, True


@jit
def _small_loss(logits, labels, ignore_index, smoothing, logp):
    """`_label_loss` of a few rows, with log softmax."""
    _log_softmax(0, len(logits), logits, logp)
    return _label_loss(logp, labels, ignore_index, smoothing)


def _labels(labels):
    return labels if labels.dtype == np.int64 and labels.flags.c_contiguous else np.ascontiguousarray(labels, np.int64)


def _check(sound, labels, ignore_index, k):
    if not sound:
        row_index(labels[labels != ignore_index], k)  # raises, and says what it found


@jit
def _count_labels(labels, ignore_index, k):
    """How many rows are kept, and whether their labels are columns."""
    kept = 0
    for i in range(labels.size):
        if labels[i] != ignore_index:
            if labels[i] < 0 or labels[i] >= k:
                return kept, False
            kept += 1
    return kept, True


@jit
def _cross_entropy_grad(start, stop, logp, labels, ignore_index, factor, target, uniform, out):
    kind = logp.dtype.type
    factor, target, uniform = kind(factor), kind(target), kind(uniform)
    for i in range(start, stop):
        row, result = logp[i], out[i]
        if labels[i] != ignore_index:
            for j in range(row.size):
                result[j] = (vmath.exp(row[j]) - uniform) * factor
            result[labels[i]] = (vmath.exp(row[labels[i]]) - uniform - target) * factor
        else:
            result[:] = 0


@jit
def _small_loss_grad(logp, labels, ignore_index, g, smoothing, out):
    """`cross_entropy_grad` of a few rows; whether their labels are columns."""
    n, k = logp.shape
    kept, sound = _count_labels(labels, ignore_index, k)
    if sound:
        _cross_entropy_grad(0, n, logp, labels, ignore_index, g / max(kept, 1), 1.0 - smoothing, smoothing / max(k, 1), out)
    return sound


def cross_entropy_grad(g, logp, labels, *, ignore_index=-100, smoothing=0.0):
    """Gradient of `cross_entropy` for the logits: g () times (softmax - q) / rows kept, ignored rows 0."""
    n, k = logp.shape
    labels, out = _labels(labels), empty((n, k), logp.dtype)
    if logp.size <= SMALL:
        sound = _small_loss_grad(np.ascontiguousarray(logp), labels, ignore_index, float(g), float(smoothing), out)
        _check(sound, labels, ignore_index, k)
        return out
    kept, sound = _count_labels(labels, ignore_index, k)
    _check(sound, labels, ignore_index, k)
    args = np.ascontiguousarray(logp), labels, ignore_index, float(g) / max(kept, 1), 1.0 - smoothing, smoothing / max(k, 1)
    parallel_for(_cross_entropy_grad, n, *args, out, grain=row_grain(k))
    return out


BLOCK = 4096  # entries summed on their own, so that threads do not change the sum


@jit(reassociate=True)
def _mse(start, stop, x, target, sums):
    for block in range(start, stop):
        left, right = x[block * BLOCK : (block + 1) * BLOCK], target[block * BLOCK : (block + 1) * BLOCK]
        total = x.dtype.type(0)
        for i in range(left.size):
            total += (left[i] - right[i]) * (left[i] - right[i])
        sums[block] = total


def mse(x, target):
    """Mean of (x - target)^2 over all entries, equal shapes -> ()."""
    flat_x, flat_target = np.ascontiguousarray(x).reshape(-1), np.ascontiguousarray(target).reshape(-1)
    sums = np.empty(-(-x.size // BLOCK))
    parallel_for(_mse, sums.size, flat_x, flat_target, sums, grain=GRAIN // BLOCK)
    return np.asarray(np.sum(sums) / x.size if x.size else np.nan, x.dtype)


@jit
def _mse_grad(start, stop, x, target, factor, out):
    x, target, out = x[start:stop], target[start:stop], out[start:stop]
    for i in range(out.size):
        out[i] = factor * (x[i] - target[i])


def mse_grad(g, x, target):
    """Gradient of `mse` for x: g () times 2 (x - target) / size."""
    return flat(_mse_grad, x, target, constants=(x.dtype.type(float(g) * 2 / max(x.size, 1)),))
