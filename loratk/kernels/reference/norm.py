"""Normalisation over the last axis."""

import numpy as np

__all__ = ["layer_norm", "layer_norm_grad", "rms_norm", "rms_norm_grad"]


def layer_norm(x, w, b, *, eps):
    """(x - mean) rstd w + b, the mean, and rstd = 1 / sqrt(var + eps): (n, k), (k,), (k,) -> (n, k), (n,), (n,).

    Ba et al. 2016, eq. 4, with the biased variance.
    """
    mean = np.mean(x, axis=-1)
    rstd = 1 / np.sqrt(np.var(x, axis=-1) + eps)
    rstd = rstd.astype(x.dtype)
    return (x - mean[:, None]) * rstd[:, None] * w + b, mean, rstd


def layer_norm_grad(g, x, w, mean, rstd):
    """Gradients of `layer_norm` for x, w and b: (n, k) -> (n, k), (k,), (k,)."""
    normal = (x - mean[:, None]) * rstd[:, None]
    gw = g * w
    dx = rstd[:, None] * (gw - np.mean(gw, axis=-1, keepdims=True) - normal * np.mean(gw * normal, axis=-1, keepdims=True))
    return dx, np.sum(g * normal, axis=0), np.sum(g, axis=0)


def rms_norm(x, w, *, eps):
    """x rstd w and rstd = 1 / sqrt(mean(x^2) + eps): (n, k), (k,) -> (n, k), (n,). Zhang & Sennrich 2019, eq. 4."""
    rstd = (1 / np.sqrt(np.mean(np.square(x), axis=-1) + eps)).astype(x.dtype)
    return x * rstd[:, None] * w, rstd


def rms_norm_grad(g, x, w, rstd):
    """Gradients of `rms_norm` for x and w: (n, k) -> (n, k), (k,)."""
    normal = x * rstd[:, None]
    gw = g * w
    return rstd[:, None] * (gw - normal * np.mean(gw * normal, axis=-1, keepdims=True)), np.sum(g * normal, axis=0)
