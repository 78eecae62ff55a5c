"""2-D convolution, channels last, as a matrix product over patches. Each thread gathers one element."""

import math

from numba import cuda

from ...errors import ShapeError
from ..reference.conv import out_size
from .arrays import asarray, asarrays, empty, flat, reshaped
from .device import launch
from .elementwise import add, mul
from .gemm import product
from .lora import lora_linear, lora_linear_grad

__all__ = ["col2im", "im2col", "lora_conv2d", "lora_conv2d_dx", "lora_conv2d_grad"]


@cuda.jit
def _im2col(x, out, h, w, c, oh, ow, kh, kw, sh, sw, ph, pw, dh, dw):
    i = cuda.grid(1)
    if i < out.size:
        channel, rest = i % c, i // c
        across, rest = rest % kw, rest // kw
        down, rest = rest % kh, rest // kh
        column, rest = rest % ow, rest // ow
        row, image = rest % oh, rest // oh
        y, x_ = row * sh + down * dh - ph, column * sw + across * dw - pw
        if y >= 0 and y < h and x_ >= 0 and x_ < w:
            out[i] = x[((image * h + y) * w + x_) * c + channel]
        else:
            out[i] = out.dtype.type(0)


def im2col(x, *, kernel, stride, padding, dilation):
    """The patches a convolution looks at: (n, h, w, c) -> (n, oh, ow, kh*kw*c), taps row by row, channels innermost.

    `im2col(x) @ W.reshape(kh*kw*c, k)` is the convolution (cross-correlation, as everywhere in deep learning).
    Each option is a pair (vertical, horizontal). Raises ShapeError if the window does not fit.
    """
    x = asarray(x)
    n, h, w, c = x.shape
    oh, ow = (out_size(*sizes) for sizes in zip((h, w), kernel, stride, padding, dilation, strict=True))
    if oh < 0 or ow < 0:
        raise ShapeError(f"A window of {kernel} (dilation {dilation}) does not fit an image of {(h, w)} with padding {padding}.")
    out = empty((n, oh, ow, kernel[0] * kernel[1] * c), x.dtype)
    launch(_im2col, out.size, flat(x), flat(out), h, w, c, oh, ow, *kernel, *stride, *padding, *dilation)
    return out


@cuda.jit
def _col2im(g, out, h, w, c, oh, ow, kh, kw, sh, sw, ph, pw, dh, dw):
    i = cuda.grid(1)
    if i < out.size:
        channel, rest = i % c, i // c
        x, rest = rest % w + pw, rest // w
        y, image = rest % h + ph, rest // h
        total = out.dtype.type(0)
        for down in range(kh):
            for across in range(kw):
                top, left = y - down * dh, x - across * dw
                if top >= 0 and left >= 0 and top % sh == 0 and left % sw == 0 and top // sh < oh and left // sw < ow:
                    patch = (image * oh + top // sh) * ow + left // sw
                    total += g[((patch * kh + down) * kw + across) * c + channel]
        out[i] = total


def col2im(g, *, shape, kernel, stride, padding, dilation):
    """The derivative of `im2col`: patches summed back into an image of `shape` (n, h, w, c)."""
    g = asarray(g)
    (_, h, w, c), (_, oh, ow, _) = shape, g.shape
    out = empty(shape, g.dtype)
    launch(_col2im, out.size, flat(g), flat(out), h, w, c, oh, ow, *kernel, *stride, *padding, *dilation)
    return out


def _rows(x):
    *lead, last = x.shape
    return reshaped(x, (math.prod(lead), last))


def lora_conv2d(x, w, a, b, mask=None, bias=None, *, scaling, kernel, stride, padding, dilation):
    """A convolution with W + scaling A B, plus bias, and the one with A: (n, h, w, c), handle (d, k), (d, r), (r, k) -> (.., k), (.., r).

    `mask` (n, h, w, c) carries the dropout of the image that A sees. Both look at the same patches.
    """
    options = {"kernel": kernel, "stride": stride, "padding": padding, "dilation": dilation}
    patches = im2col(x, **options)
    seen = None if mask is None else _rows(im2col(mask, **options))
    y, xa = lora_linear(_rows(patches), w, a, b, seen, bias, scaling=scaling)
    n, oh, ow, _ = patches.shape
    return tuple(reshaped(each, (n, oh, ow, each.shape[1])) for each in (y, xa))


def lora_conv2d_grad(g, x, xa, w, a, b, mask=None, *, scaling, kernel, stride, padding, dilation, need_x=True):
    """Gradients of `lora_conv2d` for x, A and B: (n, oh, ow, k) -> (n, h, w, c) or None, (d, r), (r, k)."""
    g, x, xa = asarrays(g, x, xa)
    options = {"kernel": kernel, "stride": stride, "padding": padding, "dilation": dilation}
    patches = im2col(x, **options)
    seen = None if mask is None else _rows(im2col(mask, **options))
    dx, da, db = lora_linear_grad(_rows(g), _rows(patches), _rows(xa), w, a, b, seen, scaling=scaling, need_x=need_x)
    return dx if dx is None else col2im(reshaped(dx, tuple(patches.shape)), shape=tuple(x.shape), **options), da, db


def lora_conv2d_dx(g, w, a, b, mask=None, *, shape, scaling, kernel, stride, padding, dilation):
    """The gradient of `lora_conv2d` for x, which has this shape (n, h, w, c), alone: (n, oh, ow, k) -> (n, h, w, c)."""
    g, a, b = asarrays(g, a, b)
    options = {"kernel": kernel, "stride": stride, "padding": padding, "dilation": dilation}
    rows, patches = _rows(g), (*g.shape[:3], a.shape[0])
    low = product(product(rows, b, b_t=True, scale=scaling), a, b_t=True)
    if mask is None:
        return col2im(reshaped(add(w.matmul_t(rows), low), patches), shape=shape, **options)
    dx, low = (col2im(reshaped(each, patches), shape=shape, **options) for each in (w.matmul_t(rows), low))
    return add(dx, mul(low, mask))
