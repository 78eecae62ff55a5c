"""Softmax, its logarithm, and the two losses, all over the last axis."""

import numpy as np

__all__ = ["cross_entropy", "cross_entropy_grad", "log_softmax", "log_softmax_grad", "mse", "mse_grad", "softmax", "softmax_grad"]


def softmax(x):
    """e^x / sum e^x over the last axis, shifted by the maximum: (..., k) -> (..., k)."""
    e = np.exp(x - np.max(x, axis=-1, keepdims=True))
    return e / np.sum(e, axis=-1, keepdims=True)


def softmax_grad(g, y):
    """y (g - sum(g y)), y being softmax(x)."""
    return y * (g - np.sum(g * y, axis=-1, keepdims=True))


def log_softmax(x):
    """x - log sum e^x over the last axis, shifted by the maximum."""
    shifted = x - np.max(x, axis=-1, keepdims=True)
    return shifted - np.log(np.sum(np.exp(shifted), axis=-1, keepdims=True))


def log_softmax_grad(g, y):
    """g - e^y sum(g), y being log_softmax(x)."""
    return g - np.exp(y) * np.sum(g, axis=-1, keepdims=True)


def label_loss(logp, labels, *, ignore_index, smoothing):
    """The loss of `cross_entropy`, from log softmax: (n, k), integers (n,) -> ()."""
    kept = labels != ignore_index
    each = -logp[np.arange(len(labels)), np.where(kept, labels, 0)]
    if smoothing:  # without it, a class ruled out by -infinity costs nothing
        each = (1 - smoothing) * each - smoothing * np.mean(logp, axis=-1)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.sum(np.where(kept, each, 0)) / logp.dtype.type(np.sum(kept)), logp.dtype)


def cross_entropy(logits, labels, *, ignore_index=-100, smoothing=0.0):
    """Mean over the rows whose label is not `ignore_index` of -sum_j q_j log softmax(logits)_j, and log softmax.

    (n, k), integers (n,) -> (), (n, k). The target q is (1 - smoothing) on the label plus smoothing / k everywhere
    (Szegedy et al. 2016, section 7). NaN when every row is ignored, as a mean over nothing is.
    """
    logp = log_softmax(logits)
    return label_loss(logp, labels, ignore_index=ignore_index, smoothing=smoothing), logp


def cross_entropy_grad(g, logp, labels, *, ignore_index=-100, smoothing=0.0):
    """Gradient of `cross_entropy` for the logits: g () times (softmax - q) / rows kept, ignored rows 0."""
    n, k = logp.shape
    kept = labels != ignore_index
    out = np.exp(logp) - smoothing / k
    out[np.arange(n), np.where(kept, labels, 0)] -= 1 - smoothing
    return (np.where(kept[:, None], out, 0) * (g / max(np.sum(kept), 1))).astype(logp.dtype)


def mse(x, target):
    """Mean of (x - target)^2 over all entries, equal shapes -> ()."""
    return np.asarray(np.mean(np.square(x - target)), x.dtype)


def mse_grad(g, x, target):
    """Gradient of `mse` for x: g () times 2 (x - target) / size."""
    return (g * 2 / x.size) * (x - target)
