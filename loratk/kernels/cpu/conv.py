"""2-D convolution, channels last, as a matrix product over patches.

Both loops walk tap by tap along one line of an image, so that the places where a tap falls into the padding are cut
off once a line, and not looked for at every pixel.
"""

import numpy as np

from ..memory import empty
from ..reference.conv import out_size
from ..runtime import jit, parallel_for
from .split import row_grain

__all__ = ["col2im", "im2col"]

FEW = 8  # channels below which the places of a line, not the channels of a place, make the inner loop


@jit(inline=True)
def _inside(tap, w, ow, stride, padding, dilation):
    """Where tap number `tap` lies at place 0, and the first and past-the-last place at which it lies on the line."""
    offset = tap * dilation - padding
    first = max(0, -(offset // stride))  # the least place with place * stride + offset >= 0
    return offset, min(first, ow), min(max((w - 1 - offset) // stride + 1, first), ow)


@jit
def _im2col(start, stop, x, out, h, oh, ow, c, kernel, stride, padding, dilation):
    w, size, step = x.shape[1] // c, kernel[0] * kernel[1] * c, stride[1] * c
    for line in range(start, stop):  # a line of places: one image, one vertical position
        target = out[line]
        if padding[0] > 0 or padding[1] > 0:
            target[:] = 0
        for i in range(kernel[0]):
            y = (line % oh) * stride[0] - padding[0] + i * dilation[0]
            if y < 0 or y >= h:
                continue
            source = x[line // oh * h + y]
            for j in range(kernel[1]):
                offset, first, last = _inside(j, w, ow, stride[1], padding[1], dilation[1])
                tap, begin = (i * kernel[1] + j) * c, (first * stride[1] + offset) * c
                if c < FEW:
                    for channel in range(c):
                        patches, pixels = target[first * size + tap + channel :], source[begin + channel :]
                        for place in range(last - first):
                            patches[place * size] = pixels[place * step]
                else:
                    for place in range(last - first):
                        patch, pixel = target[(first + place) * size + tap :][:c], source[begin + place * step :][:c]
                        for channel in range(c):
                            patch[channel] = pixel[channel]


def im2col(x, *, kernel, stride, padding, dilation):
    """The patches a convolution looks at: (n, h, w, c) -> (n, oh, ow, kh*kw*c), taps row by row, channels innermost.

    `im2col(x) @ W.reshape(kh*kw*c, k)` is the convolution (cross-correlation, as everywhere in deep learning).
    Each option is a pair (vertical, horizontal).
    """
    n, h, w, c = x.shape
    oh, ow = (out_size(*axis) for axis in zip((h, w), kernel, stride, padding, dilation, strict=True))
    size = kernel[0] * kernel[1] * c
    out = empty((n * oh, ow * size), x.dtype)
    options = (tuple(option) for option in (kernel, stride, padding, dilation))
    lines = np.ascontiguousarray(x).reshape(n * h, w * c)
    parallel_for(_im2col, n * oh, lines, out, h, oh, ow, c, *options, grain=row_grain(ow * size))
    return out.reshape(n, oh, ow, size)


@jit
def _col2im(start, stop, g, out, h, oh, ow, c, kernel, stride, padding, dilation):
    w, size, step = out.shape[1] // c, kernel[0] * kernel[1] * c, stride[1] * c
    for line in range(start, stop):  # a line of pixels, to which every patch that saw it adds
        target = out[line]
        target[:] = 0
        for i in range(kernel[0]):
            top = line % h + padding[0] - i * dilation[0]
            if top < 0 or top % stride[0] or top // stride[0] >= oh:
                continue
            source = g[line // h * oh + top // stride[0]]
            for j in range(kernel[1]):
                offset, first, last = _inside(j, w, ow, stride[1], padding[1], dilation[1])
                tap, begin = (i * kernel[1] + j) * c, (first * stride[1] + offset) * c
                if c < FEW:
                    for channel in range(c):
                        patches, pixels = source[first * size + tap + channel :], target[begin + channel :]
                        for place in range(last - first):
                            pixels[place * step] += patches[place * size]
                else:
                    for place in range(last - first):
                        patch, pixel = source[(first + place) * size + tap :][:c], target[begin + place * step :][:c]
                        for channel in range(c):
                            pixel[channel] += patch[channel]


def col2im(g, *, shape, kernel, stride, padding, dilation):
    """The derivative of `im2col`: patches summed back into an image of `shape` (n, h, w, c)."""
    n, h, w, c = shape
    _, oh, ow, size = g.shape
    out = empty((n * h, w * c), g.dtype)
    options = (tuple(option) for option in (kernel, stride, padding, dilation))
    lines = np.ascontiguousarray(g).reshape(n * oh, ow * size)
    parallel_for(_col2im, n * h, lines, out, h, oh, ow, c, *options, grain=row_grain(w * kernel[0] * kernel[1] * c))
    return out.reshape(shape)
