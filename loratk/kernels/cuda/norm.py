"""Normalisation over the last axis."""

from numba import cuda

from . import blocks
from .arrays import asarrays, empty, flat, reshaped
from .device import LANES, launch, launch_blocks
from .elementwise import mul
from .reduce import sum_over

__all__ = ["layer_norm", "layer_norm_grad", "rms_norm", "rms_norm_grad"]


def layer_norm(x, w, b, *, eps):
    """(x - mean) rstd w + b, the mean, and rstd = 1 / sqrt(var + eps): (n, k), (k,), (k,) -> (n, k), (n,), (n,).

    Ba et al. 2016, eq. 4, with the biased variance.
    """
    x, w, b = asarrays(x, w, b)
    n, k = x.shape
    out, mean, rstd = empty((n, k), x.dtype), empty(n, x.dtype), empty(n, x.dtype)
    launch_blocks(blocks.layer_norm, n, LANES, flat(x), w, b, flat(out), mean, rstd, k, x.dtype.type(eps))
    return out, mean, rstd


@cuda.jit
def _normal(x, mean, rstd, out, k):
    i = cuda.grid(1)
    if i < out.size:
        out[i] = (x[i] - mean[i // k]) * rstd[i // k]


def _grad(g, normal, w, rstd, centred):
    out = empty(g.shape, g.dtype)
    launch_blocks(blocks.norm_grad, g.shape[0], LANES, flat(g), flat(normal), w, rstd, flat(out), g.shape[1], centred)
    return out


def layer_norm_grad(g, x, w, mean, rstd):
    """Gradients of `layer_norm` for x, w and b: (n, k) -> (n, k), (k,), (k,)."""
    g, x, w, mean, rstd = asarrays(g, x, w, mean, rstd)
    normal = empty(x.shape, x.dtype)
    launch(_normal, x.size, flat(x), mean, rstd, flat(normal), x.shape[1])
    return _grad(g, normal, w, rstd, True), sum_over(mul(g, normal), axis=0), sum_over(g, axis=0)


def rms_norm(x, w, *, eps):
    """x rstd w and rstd = 1 / sqrt(mean(x^2) + eps): (n, k), (k,) -> (n, k), (n,). Zhang & Sennrich 2019, eq. 4."""
    x, w = asarrays(x, w)
    n, k = x.shape
    out, rstd = empty((n, k), x.dtype), empty(n, x.dtype)
    launch_blocks(blocks.rms_norm, n, LANES, flat(x), w, flat(out), rstd, k, x.dtype.type(eps))
    return out, rstd


def rms_norm_grad(g, x, w, rstd):
    """Gradients of `rms_norm` for x and w: (n, k) -> (n, k), (k,)."""
    g, x, w, rstd = asarrays(g, x, w, rstd)
    normal = mul(x, reshaped(rstd, (rstd.size, 1)))
    return _grad(g, normal, w, rstd, False), sum_over(mul(g, normal), axis=0)
