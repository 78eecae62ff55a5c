"""Arithmetic and elementary functions by NumPy on several threads; activations and dropout as compiled loops."""

import math

import numpy as np

from ..reference.elementwise import absolute, clip, neg, where
from ..runtime import jit
from . import vmath
from .split import GRAIN, flat, ufunc

__all__ = [
    "absolute", "add", "clip", "cos", "div", "dropout", "exp", "gelu", "gelu_grad", "log", "maximum", "minimum", "mul", "neg",
    "power", "relu", "relu_grad", "sigmoid", "sigmoid_grad", "silu", "silu_grad", "sin", "sqrt", "square", "sub", "tanh",
    "tanh_grad", "where",
]  # fmt: skip

SQRT_2_PI, CUBIC = math.sqrt(2 / math.pi), 0.044715  # of gelu's tanh form


def add(a, b):
    """a + b, broadcast."""
    return ufunc(np.add, a, b)


def sub(a, b):
    """a - b, broadcast."""
    return ufunc(np.subtract, a, b)


def mul(a, b):
    """a b, element by element, broadcast."""
    return ufunc(np.multiply, a, b)


def div(a, b):
    """a / b, broadcast; division by zero gives what IEEE 754 says."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return ufunc(np.divide, a, b)


def power(x, *, exponent):
    """x ** exponent, a real constant."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return ufunc(np.power, x, x.dtype.type(exponent), grain=GRAIN)


def square(x):
    """x ** 2."""
    return ufunc(np.square, x)


def sqrt(x):
    """Square root; NaN below zero."""
    with np.errstate(invalid="ignore"):
        return ufunc(np.sqrt, x)


def exp(x):
    """e ** x; infinity on overflow."""
    with np.errstate(over="ignore"):
        return ufunc(np.exp, x, grain=GRAIN)


def log(x):
    """Natural logarithm; -infinity at zero, NaN below."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return ufunc(np.log, x, grain=GRAIN)


def sin(x):
    """Sine of x in radians."""
    return ufunc(np.sin, x, grain=GRAIN)


def cos(x):
    """Cosine of x in radians."""
    return ufunc(np.cos, x, grain=GRAIN)


def maximum(a, b):
    """The larger of a and b, broadcast; NaN wins."""
    return ufunc(np.maximum, a, b)


def minimum(a, b):
    """The smaller of a and b, broadcast; NaN wins."""
    return ufunc(np.minimum, a, b)


def tanh(x):
    """Hyperbolic tangent."""
    return ufunc(np.tanh, x, grain=GRAIN)


@jit
def _relu(start, stop, x, out):
    x, out = x[start:stop], out[start:stop]
    zero = x.dtype.type(0)
    for i in range(out.size):
        out[i] = zero if x[i] < zero else x[i]


def relu(x):
    """max(x, 0), NaN kept."""
    return flat(_relu, x)


@jit
def _relu_grad(start, stop, g, x, out):
    g, x, out = g[start:stop], x[start:stop], out[start:stop]
    zero = g.dtype.type(0)
    for i in range(out.size):
        out[i] = g[i] if x[i] > zero else zero


def relu_grad(g, x):
    """g where x > 0, else 0."""
    return flat(_relu_grad, g, x)


@jit
def _tanh_grad(start, stop, g, y, out):
    g, y, out = g[start:stop], y[start:stop], out[start:stop]
    one = g.dtype.type(1)
    for i in range(out.size):
        out[i] = g[i] * (one - y[i] * y[i])


def tanh_grad(g, y):
    """g (1 - y^2), y being tanh(x)."""
    return flat(_tanh_grad, g, y)


@jit(inline=True)
def _logistic(x, zero, one):
    e = vmath.exp(-abs(x))  # never overflows
    return (one if x >= zero else e) / (one + e)


@jit
def _sigmoid(start, stop, x, out):
    x, out = x[start:stop], out[start:stop]
    zero, one = x.dtype.type(0), x.dtype.type(1)
    for i in range(out.size):
        out[i] = _logistic(x[i], zero, one)


def sigmoid(x):
    """1 / (1 + e^-x), without overflow on either side."""
    return flat(_sigmoid, x)


@jit
def _sigmoid_grad(start, stop, g, y, out):
    g, y, out = g[start:stop], y[start:stop], out[start:stop]
    one = g.dtype.type(1)
    for i in range(out.size):
        out[i] = g[i] * y[i] * (one - y[i])


def sigmoid_grad(g, y):
    """g y (1 - y), y being sigmoid(x)."""
    return flat(_sigmoid_grad, g, y)


@jit
def _silu(start, stop, x, out):
    x, out = x[start:stop], out[start:stop]
    zero, one = x.dtype.type(0), x.dtype.type(1)
    for i in range(out.size):
        out[i] = x[i] * _logistic(x[i], zero, one)


def silu(x):
    """x sigmoid(x). Elfwing et al. 2017, eq. 5."""
    return flat(_silu, x)


@jit
def _silu_grad(start, stop, g, x, out):
    g, x, out = g[start:stop], x[start:stop], out[start:stop]
    zero, one = x.dtype.type(0), x.dtype.type(1)
    for i in range(out.size):
        s = _logistic(x[i], zero, one)
        out[i] = g[i] * s * (one + x[i] * (one - s))


def silu_grad(g, x):
    """g s (1 + x (1 - s)), s being sigmoid(x)."""
    return flat(_silu_grad, g, x)


@jit
def _gelu(start, stop, x, out):
    x, out = x[start:stop], out[start:stop]
    for i in range(out.size):
        out[i] = x[i] * vmath.normal(x[i])[0]


@jit
def _gelu_tanh(start, stop, x, out):
    x, out = x[start:stop], out[start:stop]
    zero, one, scale, cubic = x.dtype.type(0), x.dtype.type(1), x.dtype.type(2 * SQRT_2_PI), x.dtype.type(CUBIC)
    for i in range(out.size):
        u = scale * (x[i] + cubic * x[i] * x[i] * x[i])
        out[i] = x[i] * _logistic(u, zero, one)  # (1 + tanh(u / 2)) / 2


def gelu(x, *, tanh=False):
    """x Phi(x), Phi the normal distribution function; or its tanh form. Hendrycks & Gimpel 2016, section 2."""
    return flat(_gelu_tanh if tanh else _gelu, x)


@jit
def _gelu_grad(start, stop, g, x, out):
    g, x, out = g[start:stop], x[start:stop], out[start:stop]
    for i in range(out.size):
        phi, density = vmath.normal(x[i])
        out[i] = g[i] * (phi + x[i] * density)


@jit
def _gelu_tanh_grad(start, stop, g, x, out):
    g, x, out = g[start:stop], x[start:stop], out[start:stop]
    zero, one, scale = x.dtype.type(0), x.dtype.type(1), x.dtype.type(2 * SQRT_2_PI)
    cubic, slope = x.dtype.type(CUBIC), x.dtype.type(3 * CUBIC)
    for i in range(out.size):
        square = x[i] * x[i]
        s = _logistic(scale * (x[i] + cubic * x[i] * square), zero, one)
        out[i] = g[i] * (s + x[i] * (s * (one - s)) * (scale * (one + slope * square)))


def gelu_grad(g, x, *, tanh=False):
    """g times the derivative of `gelu` at x."""
    return flat(_gelu_tanh_grad if tanh else _gelu_grad, g, x)


@jit
def _dropout(start, stop, x, mask, scale, out):
    x, mask, out = x[start:stop], mask[start:stop], out[start:stop]
    zero = x.dtype.type(0)
    for i in range(out.size):
        out[i] = x[i] * scale if mask[i] else zero


def dropout(x, mask, *, scale):
    """x * scale where the boolean `mask` holds, else 0; `mask` broadcasts to x. Srivastava et al. 2014, inverted."""
    return flat(_dropout, x, mask, constants=(x.dtype.type(scale),))
