"""Bounding gradients before an optimiser's step."""

import math
from collections.abc import Iterable

import numpy as np

from ..autograd import Tensor
from ..errors import AnomalyError, ConfigError
from .param_groups import listed


def clip_grad_norm(parameters: Iterable[Tensor], max_norm: float) -> float:
    """Scale all gradients by one factor so that their joint Euclidean norm is at most `max_norm`; the norm there was before.

    The norm is taken in float64. `max_norm` may be infinite, to measure only. Parameters without a gradient do not count.
    Raises AnomalyError, and changes nothing, if the norm is not finite. Pascanu et al. 2013, algorithm 1.
    """
    _check("max_norm", max_norm)
    owners = _with_gradient(parameters, "clip_grad_norm")
    squares = [tensor.backend.sum_squares(tensor.grad) for tensor in owners]
    norm = math.sqrt(sum(squares))
    if not math.isfinite(norm):
        bad = [str(i) for i, square in enumerate(squares) if not math.isfinite(square)]
        raise AnomalyError(
            f"The norm of the gradient is {norm}, from {len(bad)} of {len(owners)} gradients (numbers {', '.join(bad[:8])}). "
            "Nothing was clipped; run the step inside detect_anomaly() to find the op where it began, or lower the learning rate."
        )
    if norm > max_norm:
        for tensor in owners:
            _replace(tensor, tensor.backend.mul(tensor.grad, tensor.backend.asarray(np.asarray(max_norm / norm, tensor.dtype))))
    return norm


def clip_grad_value(parameters: Iterable[Tensor], limit: float) -> None:
    """Hold every entry of every gradient between -limit and limit; a NaN stays one."""
    _check("limit", limit)
    for tensor in _with_gradient(parameters, "clip_grad_value"):
        _replace(tensor, tensor.backend.clip(tensor.grad, low=-float(limit), high=float(limit)))


def _replace(tensor: Tensor, gradient: object) -> None:
    tensor.grad = gradient  # a new array: two tensors may share one gradient's array, so it must not be scaled in place


def _with_gradient(parameters: Iterable[Tensor], who: str) -> list[Tensor]:
    tensors = listed(parameters, who)
    for i, tensor in enumerate(tensors):
        if not isinstance(tensor, Tensor):
            raise ConfigError(f"{who} takes parameters, found a {type(tensor).__name__} at place {i}.")
    return [tensor for tensor in tensors if tensor.grad is not None]


def _check(name: str, value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)) or not value > 0:
        raise ConfigError(f"{name} must be a number above 0, found {value!r}.")
