"""Normalisation over the last axis."""

import math
from typing import Any

from ...errors import ShapeError
from ..tensor import Tensor, apply
from ..vjps import defvjp_joint


def _by_row(op: str, x: Tensor, *parameters: Any, eps: float) -> Tensor:
    for parameter in parameters:
        if not x.ndim or tuple(parameter.shape) != x.shape[-1:]:
            raise ShapeError(f"{op}: the last axis of x {x.shape} must fit the parameter's shape {tuple(parameter.shape)}.")
    if x.ndim == 2:
        return apply(op, x, *parameters, eps=eps)
    rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    return apply(op, rows, *parameters, eps=eps).reshape(*x.shape)


def layer_norm(x: Tensor, weight: Any, bias: Any, *, eps: float = 1e-5) -> Tensor:
    """Each row shifted to mean 0, scaled to variance 1, times weight plus bias: (..., k), (k,), (k,). Ba et al. 2016, eq. 4."""
    return _by_row("layer_norm", x, weight, bias, eps=eps)


def _layer_norm(K: Any, needs: tuple[bool, ...], out: Any, x: Any, weight: Any, bias: Any, eps: float) -> Any:
    _, mean, rstd = out
    return lambda g: K.layer_norm_grad(g, x, weight, mean, rstd)


defvjp_joint("layer_norm", _layer_norm)


def rms_norm(x: Tensor, weight: Any, *, eps: float = 1e-6) -> Tensor:
    """Each row divided by its root mean square, times weight: (..., k), (k,). Zhang & Sennrich 2019, eq. 4."""
    return _by_row("rms_norm", x, weight, eps=eps)


def _rms_norm(K: Any, needs: tuple[bool, ...], out: Any, x: Any, weight: Any, eps: float) -> Any:
    rstd = out[1]
    return lambda g: K.rms_norm_grad(g, x, weight, rstd)


defvjp_joint("rms_norm", _rms_norm)
