"""The linear layer and the embedding: the two ways of using a matrix that everything else is made of."""

from typing import Any

import numpy as np

from ..autograd import Tensor, ops
from ..errors import ConfigError, DtypeError, ShapeError
from ..kernels import Backend
from .module import Module, float_dtype, generator
from .parameter import Parameter


def positive(**sizes: Any) -> None:
    """Raise ConfigError unless every size is a positive integer."""
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, (int, np.integer)) or size < 1:
            raise ConfigError(f"{name} must be a positive integer, found {size!r}.")


def matrix(weight: Any, name: str = "weight") -> np.ndarray:
    """A float32 or float64 matrix out of what a caller handed in. Raises ShapeError or DtypeError."""
    weight = np.asarray(weight)
    if weight.ndim != 2:
        raise ShapeError(f"{name} must be a matrix (d, k), found shape {weight.shape}.")
    if weight.dtype not in (np.float32, np.float64):
        raise DtypeError(f"{name} must be float32 or float64, found {weight.dtype}; convert it with astype.")
    return weight


class Linear(Module):
    """x W + b: (..., d) -> (..., k), with `weight` (d, k) and `bias` (k,) or None.

    Drawn uniformly from +-1/sqrt(d), as is common practice.
    """

    def __init__(self, d: int, k: int, *, bias: bool = True, rng: np.random.Generator | int, dtype: Any = np.float32) -> None:
        positive(d=d, k=k)
        rng, dtype = generator(rng), float_dtype(dtype)
        bound = d**-0.5
        self.weight = Parameter(rng.uniform(-bound, bound, (d, k)).astype(dtype))
        self.bias = Parameter(rng.uniform(-bound, bound, k).astype(dtype)) if bias else None

    @classmethod
    def from_arrays(cls, weight: Any, bias: Any = None, *, backend: str | Backend = "cpu") -> "Linear":
        """A layer with copies of a weight (d, k) and, unless None, a bias (k,). Raises ShapeError or DtypeError."""
        weight = matrix(weight)
        self = cls.__new__(cls)
        self.weight, self.bias = Parameter(weight, backend=backend), None
        if bias is not None:
            bias = np.asarray(bias)
            if bias.shape != weight.shape[1:]:
                raise ShapeError(f"bias must be ({weight.shape[1]},), as the weight is {weight.shape}, found shape {bias.shape}.")
            if bias.dtype != weight.dtype:
                raise DtypeError(f"bias must have the weight's dtype {weight.dtype}, found {bias.dtype}; convert it with astype.")
            self.bias = Parameter(bias, backend=backend)
        return self

    def product(self, x: Tensor) -> Tensor:
        """x W without the bias."""
        return ops.linear(x, self.weight.handle() if self.weight.frozen else self.weight)

    def forward(self, x: Any) -> Tensor:
        """(..., d) -> (..., k)."""
        y = self.product(self.input(x))
        return y if self.bias is None else y + self.bias

    def describe(self) -> str:
        """The shape, for the repr."""
        d, k = self.weight.shape
        return f"{d}, {k}, bias={self.bias is not None}"


class Embedding(Module):
    """Rows of `weight` (v, k) by number: integers (...,) -> (..., k). Drawn from N(0, 1)."""

    def __init__(self, v: int, k: int, *, rng: np.random.Generator | int, dtype: Any = np.float32) -> None:
        positive(v=v, k=k)
        self.weight = Parameter(generator(rng).standard_normal((v, k)).astype(float_dtype(dtype)))

    @classmethod
    def from_array(cls, weight: Any, *, backend: str | Backend = "cpu") -> "Embedding":
        """An embedding with a copy of a weight (v, k)."""
        self = cls.__new__(cls)
        self.weight = Parameter(matrix(weight), backend=backend)
        return self

    def forward(self, index: Any) -> Tensor:
        """Integers (...,) in [0, v) -> (..., k)."""
        return ops.gather_rows(self.weight, index)

    def describe(self) -> str:
        """The shape, for the repr."""
        return "{}, {}".format(*self.weight.shape)
