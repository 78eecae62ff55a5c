"""2-D convolution and pooling, channels last."""

import math
from typing import Any

import numpy as np

from ...errors import ConfigError, ShapeError
from ..tensor import Tensor, apply
from ..vjps import defvjp, defvjp_joint
from .products import linear
from .reductions import max_over

Pair = int | tuple[int, int]


def pair(value: Pair, name: str, least: int) -> tuple[int, int]:
    """A number for both axes, or one for each (vertical, horizontal), each at least `least`."""
    both = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if len(both) != 2 or any(not isinstance(v, int) or isinstance(v, bool) or v < least for v in both):
        raise ConfigError(f"{name} must be an integer of at least {least}, or two of them, found {value!r}.")
    return both[0], both[1]


def _options(x: Tensor, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair) -> dict[str, tuple[int, int]]:
    """The options of the kernels, all of them pairs, checked against an image (n, h, w, c)."""
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
    return options


def im2col(x: Tensor, kernel: Pair, *, stride: Pair = 1, padding: Pair = 0, dilation: Pair = 1) -> Tensor:
    """The patches a convolution looks at: (n, h, w, c) -> (n, oh, ow, kh*kw*c), taps row by row, channels innermost."""
    return apply("im2col", x, **_options(x, kernel, stride, padding, dilation))


def _im2col(K: Any, out: Any, x: Any, **options: Any) -> Any:
    shape = x.shape
    return lambda g: K.col2im(g, shape=shape, **options)


defvjp("im2col", _im2col)


def conv2d(x: Tensor, w: Any, *, kernel: Pair, stride: Pair = 1, padding: Pair = 0, dilation: Pair = 1) -> Tensor:
    """Cross-correlation: (n, h, w, c), (kh*kw*c, k) -> (n, oh, ow, k). `w` is a tensor or a frozen weight's handle."""
    return linear(im2col(x, kernel, stride=stride, padding=padding, dilation=dilation), w)


def lora_conv2d(
    x: Tensor,
    w: Any,
    a: Any,
    b: Any,
    mask: Any = None,
    bias: Any = None,
    *,
    scaling: float,
    kernel: Pair,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
) -> Tensor:
    """A convolution with W + scaling A B, plus bias: (n, h, w, c), a frozen weight's handle (d, k), (d, r), (r, k) -> (n, oh, ow, k).

    d = kh*kw*c, and `bias` is (k,). `mask` (n, h, w, c) carries the dropout of the image that A sees, kept entries divided by
    the keep probability.
    """
    options = _options(x, kernel, stride, padding, dilation)
    shapes = [tuple(array.shape) for array in (w, a, b)]
    d = math.prod(options["kernel"]) * x.shape[3]
    if any(len(shape) != 2 for shape in shapes) or not d == w.shape[0] == a.shape[0] or (a.shape[1], w.shape[1]) != shapes[2]:
        raise ShapeError("lora_conv2d needs W ({0}, k), A ({0}, r) and B (r, k), found {1}, {2} and {3}.".format(d, *shapes))
    if mask is not None and tuple(mask.shape) != x.shape:
        raise ShapeError(f"lora_conv2d needs a mask of x's shape {x.shape}, found {tuple(mask.shape)}.")
    if bias is not None and tuple(bias.shape) != shapes[0][1:]:
        raise ShapeError(f"lora_conv2d needs a bias of shape {shapes[0][1:]}, as W is {shapes[0]}, found {tuple(bias.shape)}.")
    return apply("lora_conv2d", x, w, a, b, mask, bias, scaling=scaling, **options)


def _lora_conv2d(
    K: Any, needs: tuple[bool, ...], out: Any, x: Any, w: Any, a: Any, b: Any, mask: Any, bias: Any, scaling: float, **options: Any
) -> Any:
    xa = out[1]
    if not needs[2]:
        return _lora_conv2d_fixed_a(K, needs, xa, x.shape, w, a, b, mask, scaling, options)

    def pull(g: Any) -> tuple[Any, ...]:
        dx, da, db = K.lora_conv2d_grad(g, x, xa, w, a, b, mask, scaling=scaling, need_x=needs[0], **options)
        return dx, None, da, db if needs[3] else None, None, g if needs[5] else None

    return pull


def _lora_conv2d_fixed_a(
    K: Any, needs: tuple[bool, ...], xa: Any, shape: Any, w: Any, a: Any, b: Any, mask: Any, scaling: float, options: dict[str, Any]
) -> Any:
    """The pullback where A takes no gradient, as for a linear layer: of x only what it made with A, (n, oh, ow, r), is kept."""
    mask = mask if needs[0] else None

    def pull(g: Any) -> tuple[Any, ...]:
        dx = K.lora_conv2d_dx(g, w, a, b, mask, shape=shape, scaling=scaling, **options) if needs[0] else None
        db = None
        if needs[3]:
            seen, rows = (K.reshape(each, shape=(math.prod(each.shape[:3]), each.shape[3])) for each in (xa, g))
            db = K.mul(K.matmul(K.transpose(seen, axes=(1, 0)), rows), K.asarray(np.asarray(scaling, g.dtype)))
        return dx, None, None, db, None, g if needs[5] else None

    return pull


defvjp_joint("lora_conv2d", _lora_conv2d)


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
