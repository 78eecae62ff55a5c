"""Softmax, its logarithm, and the two losses, all over the last axis."""

from numba import cuda

from . import blocks, device
from .arrays import asarrays, empty, flat
from .device import LANES, launch, launch_blocks
from .elementwise import sub
from .reduce import mean_of_squares, sum_over
from .shape import need_inside

__all__ = ["cross_entropy", "cross_entropy_grad", "log_softmax", "log_softmax_grad", "mse", "mse_grad", "softmax", "softmax_grad"]

exp = device.exp


def _by_rows(kernel, logarithm, *arrays):
    arrays = asarrays(*arrays)
    shape = tuple(arrays[0].shape)
    out = empty(shape, arrays[0].dtype)
    rows = out.size // shape[-1] if out.size else 0
    launch_blocks(kernel, rows, LANES, *map(flat, arrays), flat(out), shape[-1], logarithm)
    return out


def softmax(x):
    """e^x / sum e^x over the last axis, shifted by the maximum: (..., k) -> (..., k)."""
    return _by_rows(blocks.softmax, False, x)


def softmax_grad(g, y):
    """y (g - sum(g y)), y being softmax(x)."""
    return _by_rows(blocks.softmax_grad, False, g, y)


def log_softmax(x):
    """x - log sum e^x over the last axis, shifted by the maximum."""
    return _by_rows(blocks.softmax, True, x)


def log_softmax_grad(g, y):
    """g - e^y sum(g), y being log_softmax(x)."""
    return _by_rows(blocks.softmax_grad, True, g, y)


def cross_entropy(logits, labels, *, ignore_index=-100, smoothing=0.0):
    """Mean over the rows whose label is not `ignore_index` of -sum_j q_j log softmax(logits)_j, and log softmax.

    (n, k), integers (n,) -> (), (n, k). The target q is (1 - smoothing) on the label plus smoothing / k everywhere
    (Szegedy et al. 2016, section 7). NaN when every row is ignored, as a mean over nothing is. Raises IndexError for a
    label outside [0, k).
    """
    logits, labels = asarrays(logits, labels)
    k = logits.shape[1]
    need_inside("cross_entropy", labels, k, ignore_index)
    logp = log_softmax(logits)
    row_sums = sum_over(logp, axis=1) if smoothing else empty(0, logp.dtype)
    loss, real = empty((), logp.dtype), logp.dtype.type
    kept = _kept(labels, ignore_index, logp.dtype)
    launch_blocks(
        blocks.cross_entropy, 1, LANES, flat(logp), row_sums, labels, kept, flat(loss), k, ignore_index, real(smoothing)
    )  # fmt: skip
    return loss, logp


def _kept(labels, ignore_index, dtype):
    kept = empty(1, dtype)
    launch_blocks(blocks.count_kept, 1, LANES, labels, kept, ignore_index)
    return kept


@cuda.jit
def _cross_entropy_grad(g, logp, labels, kept, out, k, ignore_index, smoothing):
    i = cuda.grid(1)
    if i < out.size:
        real = out.dtype.type
        label = labels[i // k]
        value = real(0)
        if label != ignore_index:
            value = exp(logp[i]) - smoothing / real(k)
            if label == i % k:
                value -= real(1) - smoothing
            value *= g[0] / kept[0]
        out[i] = value


def cross_entropy_grad(g, logp, labels, *, ignore_index=-100, smoothing=0.0):
    """Gradient of `cross_entropy` for the logits: g () times (softmax - q) / rows kept, ignored rows 0."""
    g, logp, labels = asarrays(g, logp, labels)
    need_inside("cross_entropy_grad", labels, logp.shape[1], ignore_index)
    kept = _kept(labels, ignore_index, logp.dtype)
    out, real = empty(logp.shape, logp.dtype), logp.dtype.type
    launch(
        _cross_entropy_grad, out.size, flat(g), flat(logp), labels, kept, flat(out), logp.shape[1], ignore_index, real(smoothing)
    )  # fmt: skip
    return out


def mse(x, target):
    """Mean of (x - target)^2 over all entries, equal shapes -> ()."""
    return mean_of_squares(sub(x, target))


@cuda.jit
def _mse_grad(g, x, target, scale, out):
    i = cuda.grid(1)
    if i < out.size:
        out[i] = g[0] * scale * (x[i] - target[i])


def mse_grad(g, x, target):
    """Gradient of `mse` for x: g () times 2 (x - target) / size."""
    g, x, target = asarrays(g, x, target)
    out = empty(x.shape, x.dtype)
    launch(_mse_grad, x.size, flat(g), flat(x), flat(target), x.dtype.type(2 / max(x.size, 1)), flat(out))
    return out
