"""Matrix products, with weights that train and weights that are frozen."""

import math
from typing import Any

from ...errors import DtypeError, ShapeError
from ..tensor import Tensor, apply, matrices
from ..vjps import defvjp


def _swapped(K: Any, x: Any) -> Any:
    last = len(x.shape) - 1
    return K.transpose(x, axes=(*range(last - 1), last, last - 1))


def _check(op: str, x: Any, d: int) -> None:
    if not x.shape or x.shape[-1] != d:
        raise ShapeError(f"{op}: the last axis of x {tuple(x.shape)} must have size {d}, as the weight's first axis has.")


def matmul(a: Any, b: Any) -> Tensor:
    """Matrix product over the last two axes, the leading axes broadcast: (..., n, d), (..., d, k) -> (..., n, k)."""
    return apply("matmul", *matrices(a, b))


def _for_b(K: Any, out: Any, a: Any, b: Any) -> Any:
    if len(b.shape) > 2:
        return lambda g: K.matmul(_swapped(K, a), g)
    d, k = b.shape  # rows of all leading axes in one product, instead of one product each and their sum
    n = math.prod(a.shape[:-1])
    return lambda g: K.matmul(_swapped(K, K.reshape(a, shape=(n, d))), K.reshape(g, shape=(n, k)))


defvjp("matmul", lambda K, out, a, b: lambda g: K.matmul(g, _swapped(K, b)), _for_b)


def frozen_matmul(x: Any, w: Any) -> Tensor:
    """x W with a frozen weight's handle: (..., d), (d, k) -> (..., k). No product for W's gradient, and x is not kept."""
    _check("frozen_matmul", x, w.shape[0])
    if x.dtype != w.dtype:
        raise DtypeError(f"frozen_matmul got x of {x.dtype} and a weight of {w.dtype}; convert one, nothing is converted silently.")
    return apply("frozen_matmul", x, w)


defvjp("frozen_matmul", lambda K, out, x, w: lambda g: K.frozen_matmul_t(g, w), None)


def linear(x: Any, w: Any, b: Any = None) -> Tensor:
    """x W + b: (..., d), (d, k), (k,) or None -> (..., k). `w` is a tensor or a frozen weight's handle."""
    if isinstance(w, Tensor):
        _check("linear", x, w.shape[0])
        if len(x.shape) == 1:
            return linear(x.reshape(1, -1), w, b).reshape(w.shape[1])
        y = apply("matmul", x, w)
    else:
        y = frozen_matmul(x, w)
    return y if b is None else apply("add", y, b)
