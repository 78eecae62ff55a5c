"""The linear layer and the embedding: the two ways of using a matrix that everything else is made of."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..autograd import Tensor, ops
from ..errors import ConfigError, DtypeError, ShapeError
from ..kernels import Backend
from .chain import Link
from .module import Module, float_dtype, generator
from .parameter import Parameter


def positive(**sizes: Any) -> None:
    """Raise ConfigError unless every size is a positive integer."""
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, (int, np.integer)) or size < 1:
            raise ConfigError(f"{name} must be a positive integer, found {size!r}.")


def bounded(rng: np.random.Generator, bound: float, shape: tuple[int, ...], dtype: Any) -> Parameter:
    """A parameter drawn uniformly from +-bound."""
    return Parameter(rng.uniform(-bound, bound, shape).astype(dtype))


def weight_array(weight: Any, axes: Sequence[str], name: str = "weight") -> np.ndarray:
    """A float32 or float64 array with the named axes out of what a caller handed in. Raises ShapeError or DtypeError."""
    weight = np.asarray(weight)
    if weight.ndim != len(axes) or 0 in weight.shape:
        raise ShapeError(f"{name} must have {len(axes)} axes ({', '.join(axes)}), none of them empty, found shape {weight.shape}.")
    if weight.dtype not in (np.float32, np.float64):
        raise DtypeError(f"{name} must be float32 or float64, found {weight.dtype}; convert it with astype.")
    return weight


class Affine(Module):
    """A module whose output is a product with a weight that acts as a matrix (d, k), plus a bias (k,).

    A kind defines `apply_matrix(x, m)`: its own operation with another matrix (d, k') in place of its weight, linear in m,
    the last axis of the result being the last of m.
    """

    adds_bias = True
    weight: Parameter
    bias: Parameter | None

    def _hold(self, weight: np.ndarray, bias: Any, backend: str | Backend) -> None:
        """Take copies of a checked weight and an unchecked bias. Raises ShapeError or DtypeError."""
        self.weight, self.bias = Parameter(weight, backend=backend), None
        if bias is not None:
            bias = np.asarray(bias)
            if bias.shape != weight.shape[-1:]:
                raise ShapeError(f"bias must be ({weight.shape[-1]},), as the weight is {weight.shape}, found shape {bias.shape}.")
            if bias.dtype != weight.dtype:
                raise DtypeError(f"bias must have the weight's dtype {weight.dtype}, found {bias.dtype}; convert it with astype.")
            self.bias = Parameter(bias, backend=backend)

    def apply_matrix(self, x: Tensor, m: Any) -> Tensor:
        """The module's operation with m, a tensor or a frozen weight's handle (d, k'), in place of its weight; no bias."""
        raise NotImplementedError(f"{type(self).__name__} defines no apply_matrix()")

    def product(self, x: Tensor) -> Tensor:
        """The module's operation without the bias."""
        return self.apply_matrix(x, self.weight.matrix())

    def forward(self, x: Any) -> Tensor:
        """The product plus the bias, unless that is None."""
        y = self.product(self.input(x))
        return y if self.bias is None else y + self.bias


class Linear(Affine):
    """x W + b: (..., d) -> (..., k), with `weight` (d, k) and `bias` (k,) or None.

    Drawn uniformly from +-1/sqrt(d), as is common practice.
    """

    def __init__(self, d: int, k: int, *, bias: bool = True, rng: np.random.Generator | int, dtype: Any = np.float32) -> None:
        positive(d=d, k=k)
        rng, dtype = generator(rng), float_dtype(dtype)
        self.weight = bounded(rng, d**-0.5, (d, k), dtype)
        self.bias = bounded(rng, d**-0.5, (k,), dtype) if bias else None

    @classmethod
    def from_arrays(cls, weight: Any, bias: Any = None, *, backend: str | Backend = "cpu") -> "Linear":
        """A layer with copies of a weight (d, k) and, unless None, a bias (k,). Raises ShapeError or DtypeError."""
        self = cls.__new__(cls)
        self._hold(weight_array(weight, ("d", "k")), bias, backend)
        return self

    def apply_matrix(self, x: Tensor, m: Any) -> Tensor:
        """x m: (..., d), (d, k') -> (..., k')."""
        return ops.linear(x, m)

    def link(self) -> Link | None:
        """The layer as a link of a chain, if it is frozen."""
        bias = self.bias
        if type(self) is not Linear or self.weight.requires_grad or (bias is not None and bias.requires_grad):
            return None
        return Link(self.weight.handle(), bias)

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
        self.weight = Parameter(weight_array(weight, ("v", "k")), backend=backend)
        return self

    def apply_matrix(self, index: Any, m: Any) -> Tensor:
        """Rows of m, a tensor or a frozen weight's handle (v, k'), by number: integers (...,) -> (..., k')."""
        return ops.gather_rows(m if isinstance(m, Tensor) else Tensor(m.numpy(), backend=self.backend), index)

    def forward(self, index: Any) -> Tensor:
        """Integers (...,) in [0, v) -> (..., k)."""
        return ops.gather_rows(self.weight, index)

    def describe(self) -> str:
        """The shape, for the repr."""
        return "{}, {}".format(*self.weight.shape)
