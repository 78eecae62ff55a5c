"""A module of the plugin's own, and how adapters attach to it."""

from typing import Any

import numpy as np

from loratk import LayerType, Module, Tensor, ops
from loratk.nn import Parameter


class Conv1d(Module):
    """Cross-correlation along time, plus bias: (n, t, c) -> (n, t - size + 1, k), with `weight` (size, c, k) and `bias` (k,)."""

    adds_bias = True

    def __init__(self, c: int, k: int, size: int, *, rng: int, dtype: Any = np.float32) -> None:
        draw, bound = np.random.default_rng(rng), (size * c) ** -0.5
        self.weight = Parameter(draw.uniform(-bound, bound, (size, c, k)).astype(dtype))
        self.bias = Parameter(draw.uniform(-bound, bound, k).astype(dtype))

    def apply_matrix(self, x: Tensor, m: Any) -> Tensor:
        """The convolution with a matrix in place of its weight: (n, t, c), (size*c, k') -> (n, t - size + 1, k')."""
        n, t, c = x.shape
        y = ops.conv2d(x.reshape(n, t, 1, c), m, kernel=(self.weight.shape[0], 1))
        return y.reshape(n, y.shape[1], y.shape[3])

    def forward(self, x: Any) -> Tensor:
        """(n, t, c) -> (n, t - size + 1, k)."""
        return self.apply_matrix(self.input(x), self.weight.matrix()) + self.bias


class Conv1dType(LayerType[Conv1d]):
    """`Conv1d`: the weight (size, c, k) acts as the matrix (size*c, k)."""

    name, module = "conv1d", Conv1d

    def window(self, module: Conv1d) -> tuple[int, ...]:
        """(size,)."""
        return module.weight.shape[:1]

    def apply(self, module: Conv1d, x: Any, m: Any) -> Tensor:
        """(n, t, c), (size*c, k') -> (n, t - size + 1, k')."""
        return module.apply_matrix(x, m)
