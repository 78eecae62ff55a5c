"""Sums, means and extremes over axes, and broadcasting."""

from typing import Any

from ..tensor import Tensor, apply
from ..vjps import defvjp

Axis = int | tuple[int, ...] | None


def _kept(shape: tuple[int, ...], axis: Axis) -> tuple[int, ...]:
    """The shape of a reduction that keeps the axes it sums over."""
    axes = range(len(shape)) if axis is None else (axis,) if isinstance(axis, int) else axis
    gone = {a % len(shape) for a in axes}
    return tuple(1 if i in gone else size for i, size in enumerate(shape))


def sum_over(x: Any, axis: Axis = None, *, keepdims: bool = False) -> Tensor:
    """The sum over one axis, several, or all."""
    return apply("sum_over", x, axis=axis, keepdims=keepdims)


def _sum_over(K: Any, out: Any, x: Any, axis: Axis, keepdims: bool) -> Any:
    shape = x.shape
    return lambda g: K.broadcast_to(K.reshape(g, shape=_kept(shape, axis)), shape=shape)


defvjp("sum_over", _sum_over)


def mean(x: Tensor, axis: Axis = None, *, keepdims: bool = False) -> Tensor:
    """The mean over one axis, several, or all; NaN over none."""
    return x.mean(axis, keepdims=keepdims)


def max_over(x: Any, axis: Axis = None, *, keepdims: bool = False) -> Tensor:
    """The maximum over one axis, several, or all; ties share the gradient equally."""
    return apply("max_over", x, axis=axis, keepdims=keepdims)


def _max_over(K: Any, out: Any, x: Any, axis: Axis, keepdims: bool) -> Any:
    kept = _kept(x.shape, axis)
    return lambda g: K.max_grad(K.reshape(g, shape=kept), x, K.reshape(out, shape=kept), axis=axis)


defvjp("max_over", _max_over)


def min_over(x: Tensor, axis: Axis = None, *, keepdims: bool = False) -> Tensor:
    """The minimum over one axis, several, or all; ties share the gradient equally."""
    return -max_over(-x, axis, keepdims=keepdims)


def broadcast_to(x: Any, shape: tuple[int, ...]) -> Tensor:
    """x repeated to a shape."""
    return apply("broadcast_to", x, shape=shape)


defvjp("broadcast_to", lambda K, out, x, shape: lambda g: g)  # backward() sums what was broadcast


def sum_to(x: Any, shape: tuple[int, ...]) -> Tensor:
    """x summed down to a shape that broadcasts to its own."""
    return apply("sum_to", x, shape=shape)


def _sum_to(K: Any, out: Any, x: Any, shape: tuple[int, ...]) -> Any:
    full = x.shape
    return lambda g: K.broadcast_to(g, shape=full)


defvjp("sum_to", _sum_to)
