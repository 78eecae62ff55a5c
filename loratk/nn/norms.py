"""Normalisation: of each row over its features, and of each feature over the batch."""

from typing import Any

import numpy as np

from ..autograd import Tensor, no_grad, ops
from ..errors import ConfigError, ShapeError
from .linear import positive
from .module import Module, float_dtype
from .parameter import Buffer, Parameter


def above_zero(name: str, value: Any) -> float:
    """A finite number above 0. Raises ConfigError."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)) or not 0 < value < np.inf:
        raise ConfigError(f"{name} must be a finite number above 0, found {value!r}.")
    return float(value)


class LayerNorm(Module):
    """Each row shifted to mean 0 and scaled to variance 1, times `weight` (k,) plus `bias` (k,) or None: (..., k) -> (..., k).

    Ba et al. 2016, eq. 4, with the biased variance. The weight starts at 1, the bias at 0.
    """

    adds_bias = True

    def __init__(self, k: int, *, eps: float = 1e-5, bias: bool = True, dtype: Any = np.float32) -> None:
        positive(k=k)
        self.eps = above_zero("eps", eps)
        self.weight = Parameter(np.ones(k, float_dtype(dtype)))
        self.bias = Parameter(np.zeros(k, float_dtype(dtype))) if bias else None

    def forward(self, x: Any) -> Tensor:
        """(..., k) -> (..., k)."""
        bias = np.zeros(self.weight.shape, self.weight.dtype) if self.bias is None else self.bias
        return ops.layer_norm(self.input(x), self.weight, bias, eps=self.eps)

    def describe(self) -> str:
        """The size and epsilon, for the repr."""
        return f"{self.weight.size}, eps={self.eps}, bias={self.bias is not None}"


class RMSNorm(Module):
    """Each row divided by its root mean square, times `weight` (k,): (..., k) -> (..., k). Zhang & Sennrich 2019, eq. 4."""

    def __init__(self, k: int, *, eps: float = 1e-6, dtype: Any = np.float32) -> None:
        positive(k=k)
        self.eps = above_zero("eps", eps)
        self.weight = Parameter(np.ones(k, float_dtype(dtype)))

    def forward(self, x: Any) -> Tensor:
        """(..., k) -> (..., k)."""
        return ops.rms_norm(self.input(x), self.weight, eps=self.eps)

    def describe(self) -> str:
        """The size and epsilon, for the repr."""
        return f"{self.weight.size}, eps={self.eps}"


class BatchNorm(Module):
    """Each feature shifted to mean 0 and scaled to variance 1, times `weight` (k,) plus `bias` (k,): (..., k) -> (..., k).

    The mean and the biased variance are taken over all axes but the last, so that rows (n, k), sequences (n, t, k) and
    images (n, h, w, k) all work. Ioffe & Szegedy 2015, algorithm 1. In training the buffers `running_mean` and
    `running_var` move by the share `momentum` towards the batch's mean and unbiased variance; in evaluation, and where
    weight and bias are frozen, they take the place of the batch's (algorithm 2): a frozen layer does not move.
    """

    adds_bias = True

    def __init__(self, k: int, *, eps: float = 1e-5, momentum: float = 0.1, dtype: Any = np.float32) -> None:
        positive(k=k)
        self.eps, dtype = above_zero("eps", eps), float_dtype(dtype)
        self.momentum = above_zero("momentum", momentum)
        if self.momentum > 1:
            raise ConfigError(f"momentum must be above 0 and at most 1, found {momentum!r}.")
        self.weight, self.bias = Parameter(np.ones(k, dtype)), Parameter(np.zeros(k, dtype))
        self.running_mean, self.running_var = Buffer(np.zeros(k, dtype)), Buffer(np.ones(k, dtype))

    def forward(self, x: Any) -> Tensor:
        """(..., k) -> (..., k). Raises ShapeError in training on fewer than two values a feature."""
        x = self.input(x)
        if x.ndim < 2 or x.shape[-1] != self.weight.size:
            raise ShapeError(f"BatchNorm needs x (..., {self.weight.size}) with at least two axes, found shape {x.shape}.")
        if not self.training or (self.weight.frozen and self.bias.frozen):
            return (x - self.running_mean) * (self.weight / ops.sqrt(self.running_var + self.eps)) + self.bias
        count = x.size // x.shape[-1]
        if count < 2:
            raise ShapeError(
                f"BatchNorm in training needs at least two values a feature, found shape {x.shape}; use eval() or a larger batch."
            )
        axes = tuple(range(x.ndim - 1))
        mean = x.mean(axes)
        centred = x - mean
        var = ops.square(centred).mean(axes)
        self._track(mean, var, count)
        return centred * (self.weight / ops.sqrt(var + self.eps)) + self.bias

    def _track(self, mean: Tensor, var: Tensor, count: int) -> None:
        with no_grad():
            for buffer, new in ((self.running_mean, mean), (self.running_var, var * (count / (count - 1)))):
                buffer.data = (buffer * (1 - self.momentum) + new * self.momentum).data

    def describe(self) -> str:
        """The size, epsilon and momentum, for the repr."""
        return f"{self.weight.size}, eps={self.eps}, momentum={self.momentum}"
