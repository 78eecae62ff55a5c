"""Activation functions, and softmax over the last axis."""

from typing import Any

from ..tensor import Tensor, apply
from ..vjps import defvjp


def relu(x: Any) -> Tensor:
    """max(x, 0); the derivative at 0 is 0."""
    return apply("relu", x)


defvjp("relu", lambda K, out, x: lambda g: K.relu_grad(g, out))  # out > 0 exactly where x > 0: x itself is not kept


def gelu(x: Any, *, tanh: bool = False) -> Tensor:
    """x Phi(x), exact or in its tanh form. Hendrycks & Gimpel 2016, section 2."""
    return apply("gelu", x, tanh=tanh)


defvjp("gelu", lambda K, out, x, tanh: lambda g: K.gelu_grad(g, x, tanh=tanh))


def silu(x: Any) -> Tensor:
    """x sigmoid(x), also called swish. Elfwing et al. 2017, eq. 5."""
    return apply("silu", x)


defvjp("silu", lambda K, out, x: lambda g: K.silu_grad(g, x))


def tanh(x: Any) -> Tensor:
    """Hyperbolic tangent."""
    return apply("tanh", x)


defvjp("tanh", lambda K, out, x: lambda g: K.tanh_grad(g, out))


def sigmoid(x: Any) -> Tensor:
    """1 / (1 + e^-x)."""
    return apply("sigmoid", x)


defvjp("sigmoid", lambda K, out, x: lambda g: K.sigmoid_grad(g, out))


def softmax(x: Any) -> Tensor:
    """e^x / sum e^x over the last axis."""
    return apply("softmax", x)


defvjp("softmax", lambda K, out, x: lambda g: K.softmax_grad(g, out))


def log_softmax(x: Any) -> Tensor:
    """The logarithm of `softmax`, computed without it."""
    return apply("log_softmax", x)


defvjp("log_softmax", lambda K, out, x: lambda g: K.log_softmax_grad(g, out))
