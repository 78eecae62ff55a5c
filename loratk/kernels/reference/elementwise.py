"""Arithmetic with broadcasting, activations and their derivatives, and dropout by mask."""

import math

import numpy as np

__all__ = [
    "absolute", "add", "clip", "cos", "div", "dropout", "exp", "gelu", "gelu_grad", "log", "maximum", "minimum", "mul", "neg",
    "power", "relu", "relu_grad", "sigmoid", "sigmoid_grad", "silu", "silu_grad", "sin", "sqrt", "square", "sub", "tanh",
    "tanh_grad", "where",
]  # fmt: skip

_erf = np.vectorize(math.erf, otypes=[np.float64])


def add(a, b):
    """a + b, broadcast."""
    return np.add(a, b)


def sub(a, b):
    """a - b, broadcast."""
    return np.subtract(a, b)


def mul(a, b):
    """a b, element by element, broadcast."""
    return np.multiply(a, b)


def div(a, b):
    """a / b, broadcast; division by zero gives what IEEE 754 says."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.divide(a, b)


def neg(x):
    """-x."""
    return np.negative(x)


def power(x, *, exponent):
    """x ** exponent, a real constant."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.power(x, x.dtype.type(exponent))


def square(x):
    """x ** 2."""
    return np.square(x)


def sqrt(x):
    """Square root; NaN below zero."""
    with np.errstate(invalid="ignore"):
        return np.sqrt(x)


def exp(x):
    """e ** x; infinity on overflow."""
    with np.errstate(over="ignore"):
        return np.exp(x)


def log(x):
    """Natural logarithm; -infinity at zero, NaN below."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.log(x)


def sin(x):
    """Sine of x in radians."""
    return np.sin(x)


def cos(x):
    """Cosine of x in radians."""
    return np.cos(x)


def absolute(x):
    """|x|."""
    return np.abs(x)


def maximum(a, b):
    """The larger of a and b, broadcast; NaN wins."""
    return np.maximum(a, b)


def minimum(a, b):
    """The smaller of a and b, broadcast; NaN wins."""
    return np.minimum(a, b)


def clip(x, *, low, high):
    """x held between two constants, low <= high; None leaves a side open."""
    return np.clip(x, low, high)


def where(condition, a, b):
    """a where the boolean array `condition` holds, else b; all three broadcast."""
    return np.where(condition, a, b)


def relu(x):
    """max(x, 0), NaN kept."""
    return np.maximum(x, x.dtype.type(0))


def relu_grad(g, x):
    """g where x > 0, else 0."""
    return np.where(x > 0, g, g.dtype.type(0))


def tanh(x):
    """Hyperbolic tangent."""
    return np.tanh(x)


def tanh_grad(g, y):
    """g (1 - y^2), y being tanh(x)."""
    return g * (1 - y * y)


def sigmoid(x):
    """1 / (1 + e^-x), without overflow on either side."""
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + e), e / (1 + e)).astype(x.dtype)


def sigmoid_grad(g, y):
    """g y (1 - y), y being sigmoid(x)."""
    return g * y * (1 - y)


def silu(x):
    """x sigmoid(x). Elfwing et al. 2017, eq. 5."""
    return x * sigmoid(x)


def silu_grad(g, x):
    """g s (1 + x (1 - s)), s being sigmoid(x)."""
    s = sigmoid(x)
    return g * s * (1 + x * (1 - s))


def gelu(x, *, tanh=False):
    """x Phi(x), Phi the normal distribution function; or its tanh form. Hendrycks & Gimpel 2016, section 2."""
    if tanh:
        return (0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))).astype(x.dtype)
    return (0.5 * x * (1 + _erf(x / math.sqrt(2)))).astype(x.dtype)


def gelu_grad(g, x, *, tanh=False):
    """g times the derivative of `gelu` at x."""
    if tanh:
        c = math.sqrt(2 / math.pi)
        t = np.tanh(c * (x + 0.044715 * x**3))
        slope = 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * c * (1 + 3 * 0.044715 * x * x)
    else:
        slope = 0.5 * (1 + _erf(x / math.sqrt(2))) + x * np.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
    return (g * slope).astype(x.dtype)


def dropout(x, mask, *, scale):
    """x * scale where the boolean `mask` holds, else 0; `mask` broadcasts to x. Srivastava et al. 2014, inverted."""
    return np.where(mask, x * x.dtype.type(scale), x.dtype.type(0))
