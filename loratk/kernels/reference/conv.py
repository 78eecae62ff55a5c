"""2-D convolution, channels last, as a matrix product over patches."""

import math

import numpy as np

from .lora import lora_linear, lora_linear_grad

__all__ = ["col2im", "im2col", "lora_conv2d", "lora_conv2d_dx", "lora_conv2d_grad"]


def out_size(size, kernel, stride, padding, dilation):
    """How many places a window of `kernel` taps takes along an axis."""
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def im2col(x, *, kernel, stride, padding, dilation):
    """The patches a convolution looks at: (n, h, w, c) -> (n, oh, ow, kh*kw*c), taps row by row, channels innermost.

    `im2col(x) @ W.reshape(kh*kw*c, k)` is the convolution (cross-correlation, as everywhere in deep learning).
    Each option is a pair (vertical, horizontal).
    """
    n, h, w, c = x.shape
    (kh, kw), (sh, sw), (ph, pw), (dh, dw) = kernel, stride, padding, dilation
    oh, ow = out_size(h, kh, sh, ph, dh), out_size(w, kw, sw, pw, dw)
    padded = np.pad(x, ((0, 0), (ph, ph), (pw, pw), (0, 0)))
    out = np.empty((n, oh, ow, kh, kw, c), x.dtype)
    for i in range(kh):
        for j in range(kw):
            out[:, :, :, i, j] = padded[:, i * dh : i * dh + sh * oh : sh, j * dw : j * dw + sw * ow : sw][:, :oh, :ow]
    return out.reshape(n, oh, ow, kh * kw * c)


def col2im(g, *, shape, kernel, stride, padding, dilation):
    """The derivative of `im2col`: patches summed back into an image of `shape` (n, h, w, c)."""
    n, h, w, c = shape
    (kh, kw), (sh, sw), (ph, pw), (dh, dw) = kernel, stride, padding, dilation
    _, oh, ow, _ = g.shape
    patches = g.reshape(n, oh, ow, kh, kw, c)
    out = np.zeros((n, h + 2 * ph, w + 2 * pw, c), g.dtype)
    for i in range(kh):
        for j in range(kw):
            out[:, i * dh : i * dh + sh * oh : sh, j * dw : j * dw + sw * ow : sw][:, :oh, :ow] += patches[:, :, :, i, j]
    return np.ascontiguousarray(out[:, ph : ph + h, pw : pw + w])


def _rows(x):
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def lora_conv2d(x, w, a, b, mask=None, bias=None, *, scaling, kernel, stride, padding, dilation):
    """A convolution with W + scaling A B, plus bias, and the one with A: (n, h, w, c), handle (d, k), (d, r), (r, k) -> (.., k), (.., r).

    d = kh*kw*c, and `..` are n, oh, ow; `bias` is (k,). `mask` (n, h, w, c) carries the dropout of the image that A sees, kept
    entries divided by the keep probability. The options are those of `im2col`.
    """
    options = {"kernel": kernel, "stride": stride, "padding": padding, "dilation": dilation}
    patches = im2col(x, **options)
    seen = None if mask is None else _rows(im2col(mask, **options))
    y, xa = lora_linear(_rows(patches), w, a, b, seen, bias, scaling=scaling)
    return y.reshape(*patches.shape[:3], y.shape[1]), xa.reshape(*patches.shape[:3], xa.shape[1])


def lora_conv2d_grad(g, x, xa, w, a, b, mask=None, *, scaling, kernel, stride, padding, dilation, need_x=True):
    """Gradients of `lora_conv2d` for x, A and B: (n, oh, ow, k) -> (n, h, w, c) or None, (d, r), (r, k)."""
    options = {"kernel": kernel, "stride": stride, "padding": padding, "dilation": dilation}
    patches = im2col(x, **options)
    seen = None if mask is None else _rows(im2col(mask, **options))
    dx, da, db = lora_linear_grad(_rows(g), _rows(patches), _rows(xa), w, a, b, seen, scaling=scaling, need_x=need_x)
    return dx if dx is None else col2im(dx.reshape(patches.shape), shape=x.shape, **options), da, db


def lora_conv2d_dx(g, w, a, b, mask=None, *, shape, scaling, kernel, stride, padding, dilation):
    """The gradient of `lora_conv2d` for x, which has this shape (n, h, w, c), alone: (n, oh, ow, k) -> (n, h, w, c)."""
    options = {"kernel": kernel, "stride": stride, "padding": padding, "dilation": dilation}
    rows = _rows(g)
    dx, low = (
        col2im(each.reshape(*g.shape[:3], len(a)), shape=shape, **options) for each in (w.matmul_t(rows), scaling * (rows @ b.T) @ a.T)
    )
    return dx + (low if mask is None else low * mask)
