"""2-D convolution, channels last, as a matrix product over patches."""

import numpy as np

__all__ = ["col2im", "im2col"]


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
