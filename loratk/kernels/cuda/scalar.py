"""The elementwise operations on single numbers, for use inside kernels.

Each takes the type of the result first: constants are made of it, for Numba computes in float64 what meets a bare 1
or 0.5. NaN and infinity come out as the NumPy reference has them. No `min` and `max`: some versions of Numba cannot
compile them for a GPU.
"""

import math

from . import device

cos, exp, log, sin, sqrt, tanh = device.cos, device.exp, device.log, device.sin, device.sqrt, device.tanh
ROOT_HALF = math.sqrt(1 / 2)
ROOT_TWO_OVER_PI = math.sqrt(2 / math.pi)
ROOT_TWO_PI = math.sqrt(2 * math.pi)


def add(real, a, b):
    """a + b."""
    return a + b


def sub(real, a, b):
    """a - b."""
    return a - b


def mul(real, a, b):
    """a b."""
    return a * b


def div(real, a, b):
    """a / b."""
    return a / b


def maximum(real, a, b):
    """The larger of a and b; NaN wins."""
    return a if a > b or a != a else b


def minimum(real, a, b):
    """The smaller of a and b; NaN wins."""
    return a if a < b or a != a else b


def equal(real, a, b):
    """1 where a = b, else 0."""
    return real(1) if a == b else real(0)


def neg(real, x):
    """-x."""
    return -x


def absolute(real, x):
    """|x|."""
    return abs(x)


def square(real, x):
    """x^2."""
    return x * x


def square_root(real, x):
    """Square root; NaN below zero."""
    return sqrt(x)


def exponential(real, x):
    """e^x."""
    return exp(x)


def logarithm(real, x):
    """Natural logarithm."""
    return log(x)


def sine(real, x):
    """Sine of x in radians."""
    return sin(x)


def cosine(real, x):
    """Cosine of x in radians."""
    return cos(x)


def relu(real, x):
    """max(x, 0), NaN kept."""
    return real(0) if x < real(0) else x


def relu_grad(real, g, x):
    """g where x > 0, else 0."""
    return g if x > real(0) else real(0)


def hyperbolic_tangent(real, x):
    """Hyperbolic tangent."""
    return tanh(x)


def tanh_grad(real, g, y):
    """g (1 - y^2), y being tanh(x)."""
    return g * (real(1) - y * y)


def sigmoid(real, x):
    """1 / (1 + e^-x), without overflow on either side."""
    e = exp(-abs(x))
    return (real(1) if x >= real(0) else e) / (real(1) + e)


def sigmoid_grad(real, g, y):
    """g y (1 - y), y being sigmoid(x)."""
    return g * y * (real(1) - y)


def silu(real, x):
    """x sigmoid(x)."""
    e = exp(-abs(x))
    return x * ((real(1) if x >= real(0) else e) / (real(1) + e))


def silu_grad(real, g, x):
    """g s (1 + x (1 - s)), s being sigmoid(x)."""
    e = exp(-abs(x))
    s = (real(1) if x >= real(0) else e) / (real(1) + e)
    return g * s * (real(1) + x * (real(1) - s))


def gelu(real, x):
    """x Phi(x), Phi the normal distribution function."""
    return real(0.5) * x * real(math.erfc(-x * real(ROOT_HALF)))  # 1 + erf loses every digit below zero


def gelu_grad(real, g, x):
    """g times the derivative of `gelu` at x."""
    below = real(0.5) * real(math.erfc(-x * real(ROOT_HALF)))
    return g * (below + x * exp(real(-0.5) * x * x) / real(ROOT_TWO_PI))


def gelu_tanh(real, x):
    """The tanh form of `gelu`."""
    return real(0.5) * x * (real(1) + tanh(real(ROOT_TWO_OVER_PI) * (x + real(0.044715) * x * x * x)))


def gelu_tanh_grad(real, g, x):
    """g times the derivative of `gelu_tanh` at x."""
    t = tanh(real(ROOT_TWO_OVER_PI) * (x + real(0.044715) * x * x * x))
    inner = real(ROOT_TWO_OVER_PI) * (real(1) + real(3 * 0.044715) * x * x)
    return g * (real(0.5) * (real(1) + t) + real(0.5) * x * (real(1) - t * t) * inner)
