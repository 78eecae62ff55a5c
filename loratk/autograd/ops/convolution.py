"""2-D convolution and pooling, channels last."""

from typing import Any

from ...errors import ConfigError, ShapeError
from ..tensor import Tensor, apply
from ..vjps import defvjp
from .products import linear
from .reductions import max_over

Pair = int | tuple[int, int]


def pair(value: Pair, name: str, least: int) -> tuple[int, int]:
    """A number for both axes, or one for each (vertical, horizontal), each at least `least`."""
    both = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if len(both) != 2 or any(not isinstance(v, int) or isinstance(v, bool) or v < least for v in both):
        raise ConfigError(f"{name} must be an integer of at least {least}, or two of them, found {value!r}.")
    return both[0], both[1]


def im2col(x: Tensor, kernel: Pair, *, stride: Pair = 1, padding: Pair = 0, dilation: Pair = 1) -> Tensor:
    """The patches a convolution looks at: (n, h, w, c) -> (n, oh, ow, kh*kw*c), taps row by row, channels innermost."""
    if x.ndim != 4:
        raise ShapeError(f"A 2-D convolution or pooling needs x (n, height, width, channels), found shape {x.shape}.")
    options = {
        "kernel": pair(kernel, "kernel", 1),
        "stride": pair(stride, "stride", 1),
        "padding": pair(padding, "padding", 0),
        "dilation": pair(dilation, "dilation", 1),
    }
    for axis in (0, 1):
        window = options["dilation"][axis] * (options["kernel"][axis] - 1) + 1
        if x.shape[1 + axis] + 2 * options["padding"][axis] < window:
            raise ShapeError(f"A window of {window} does not fit an image of shape {x.shape} padded by {options['padding']}.")
    return apply("im2col", x, **options)


def _im2col(K: Any, out: Any, x: Any, **options: Any) -> Any:
    shape = x.shape
    return lambda g: K.col2im(g, shape=shape, **options)


defvjp("im2col", _im2col)


def conv2d(x: Tensor, w: Any, *, kernel: Pair, stride: Pair = 1, padding: Pair = 0, dilation: Pair = 1) -> Tensor:
    """Cross-correlation: (n, h, w, c), (kh*kw*c, k) -> (n, oh, ow, k). `w` is a tensor or a frozen weight's handle."""
    return linear(im2col(x, kernel, stride=stride, padding=padding, dilation=dilation), w)


def _windows(x: Tensor, kernel: Pair, stride: Pair | None) -> Tensor:
    kernel = pair(kernel, "kernel", 1)
    patches = im2col(x, kernel, stride=kernel if stride is None else stride)
    return patches.reshape(*patches.shape[:3], kernel[0] * kernel[1], x.shape[3])


def max_pool2d(x: Tensor, kernel: Pair, *, stride: Pair | None = None) -> Tensor:
    """The maximum of each window: (n, h, w, c) -> (n, oh, ow, c). The stride is the window if not given."""
    return max_over(_windows(x, kernel, stride), axis=3)


def avg_pool2d(x: Tensor, kernel: Pair, *, stride: Pair | None = None) -> Tensor:
    """The mean of each window: (n, h, w, c) -> (n, oh, ow, c). The stride is the window if not given."""
    return _windows(x, kernel, stride).mean(axis=3)
