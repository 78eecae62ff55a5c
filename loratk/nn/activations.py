"""Activation functions as modules."""

from typing import Any

from ..autograd import Tensor, ops
from .chain import RELU
from .module import Module


class Identity(Module):
    """x."""

    def forward(self, x: Any) -> Tensor:
        """x itself."""
        return self.input(x)


class ReLU(Module):
    """max(x, 0)."""

    def forward(self, x: Any) -> Tensor:
        """(...) -> (...)."""
        return ops.relu(self.input(x))

    def link(self) -> Any:
        """ReLU, in a chain."""
        return RELU if type(self) is ReLU else None


class GELU(Module):
    """x Phi(x), exact, or in its tanh form (Hendrycks & Gimpel 2016)."""

    def __init__(self, *, tanh: bool = False) -> None:
        self.tanh = tanh

    def forward(self, x: Any) -> Tensor:
        """(...) -> (...)."""
        return ops.gelu(self.input(x), tanh=self.tanh)

    def describe(self) -> str:
        """The form, for the repr."""
        return "tanh=True" if self.tanh else ""


class SiLU(Module):
    """x sigmoid(x), also called swish."""

    def forward(self, x: Any) -> Tensor:
        """(...) -> (...)."""
        return ops.silu(self.input(x))


class Tanh(Module):
    """Hyperbolic tangent."""

    def forward(self, x: Any) -> Tensor:
        """(...) -> (...)."""
        return ops.tanh(self.input(x))


class Sigmoid(Module):
    """1 / (1 + e^-x)."""

    def forward(self, x: Any) -> Tensor:
        """(...) -> (...)."""
        return ops.sigmoid(self.input(x))


class Softmax(Module):
    """e^x / sum e^x over the last axis."""

    def forward(self, x: Any) -> Tensor:
        """(..., k) -> (..., k)."""
        return ops.softmax(self.input(x))


ACTIVATIONS = {"relu": ReLU, "gelu": GELU, "silu": SiLU, "tanh": Tanh, "sigmoid": Sigmoid, "identity": Identity}
