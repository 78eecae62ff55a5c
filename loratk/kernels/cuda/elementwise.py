"""One thread an element: arithmetic with broadcasting, activations and their derivatives, dropout by mask."""

import numpy as np
from numba import cuda

from . import scalar
from .arrays import asarray, asarrays, empty, flat
from .device import launch
from .geometry import broadcast, offset

__all__ = [
    "absolute", "add", "clip", "cos", "div", "dropout", "exp", "gelu", "gelu_grad", "log", "maximum", "minimum", "mul", "neg",
    "power", "relu", "relu_grad", "sigmoid", "sigmoid_grad", "silu", "silu_grad", "sin", "sqrt", "square", "sub", "tanh",
    "tanh_grad", "where",
]  # fmt: skip


def unary(operation):
    """The kernel that applies a scalar function to each element of one array."""
    apply = cuda.jit(device=True)(operation)

    @cuda.jit
    def _unary(x, out):
        i = cuda.grid(1)
        if i < out.size:
            out[i] = apply(out.dtype.type, x[i])

    def function(x):
        x = asarray(x)
        out = empty(x.shape, x.dtype)
        launch(_unary, x.size, flat(x), flat(out))
        return out

    function.__doc__ = operation.__doc__
    return function


def binary(operation):
    """The kernel that applies a scalar function to each pair of elements of two arrays, broadcast."""
    apply = cuda.jit(device=True)(operation)

    @cuda.jit
    def _binary(a, b, out, shape, a_steps, b_steps):
        i = cuda.grid(1)
        if i < out.size:
            real = out.dtype.type
            out[i] = apply(real, real(a[offset(i, shape, a_steps)]), real(b[offset(i, shape, b_steps)]))

    def function(a, b):
        a, b = asarrays(a, b)
        shape, way = broadcast(tuple(a.shape), tuple(b.shape))
        out = empty(shape, np.result_type(a.dtype, b.dtype))
        launch(_binary, out.size, flat(a), flat(b), flat(out), *way)
        return out

    function.__doc__ = operation.__doc__
    return function


add = binary(scalar.add)
sub = binary(scalar.sub)
mul = binary(scalar.mul)
div = binary(scalar.div)
maximum = binary(scalar.maximum)
minimum = binary(scalar.minimum)
equal = binary(scalar.equal)
neg = unary(scalar.neg)
absolute = unary(scalar.absolute)
square = unary(scalar.square)
sqrt = unary(scalar.square_root)
exp = unary(scalar.exponential)
log = unary(scalar.logarithm)
sin = unary(scalar.sine)
cos = unary(scalar.cosine)
relu = unary(scalar.relu)
tanh = unary(scalar.hyperbolic_tangent)
sigmoid = unary(scalar.sigmoid)
silu = unary(scalar.silu)
relu_grad = binary(scalar.relu_grad)
tanh_grad = binary(scalar.tanh_grad)
sigmoid_grad = binary(scalar.sigmoid_grad)
silu_grad = binary(scalar.silu_grad)
_gelu = unary(scalar.gelu)
_gelu_tanh = unary(scalar.gelu_tanh)
_gelu_grad = binary(scalar.gelu_grad)
_gelu_tanh_grad = binary(scalar.gelu_tanh_grad)


def gelu(x, *, tanh=False):
    """x Phi(x), Phi the normal distribution function; or its tanh form."""
    return _gelu_tanh(x) if tanh else _gelu(x)


def gelu_grad(g, x, *, tanh=False):
    """g times the derivative of `gelu` at x."""
    return _gelu_tanh_grad(g, x) if tanh else _gelu_grad(g, x)


@cuda.jit
def _power(x, exponent, out):
    i = cuda.grid(1)
    if i < out.size:
        out[i] = x[i] ** exponent


def power(x, *, exponent):
    """x ** exponent, a real constant."""
    x = asarray(x)
    if exponent == 0.5:  # as NumPy has it, which differs from the power function at -infinity
        return sqrt(x)
    out = empty(x.shape, x.dtype)
    launch(_power, x.size, flat(x), x.dtype.type(exponent), flat(out))
    return out


@cuda.jit
def _clip(x, low, high, out):
    i = cuda.grid(1)
    if i < out.size:
        value = x[i]
        if value < low:
            value = low
        if value > high:
            value = high
        out[i] = value


def clip(x, *, low, high):
    """x held between two constants, low <= high; None leaves a side open."""
    x = asarray(x)
    real = x.dtype.type
    out = empty(x.shape, x.dtype)
    launch(_clip, x.size, flat(x), real(-np.inf if low is None else low), real(np.inf if high is None else high), flat(out))
    return out


@cuda.jit
def _where(condition, a, b, out, shape, condition_steps, a_steps, b_steps):
    i = cuda.grid(1)
    if i < out.size:
        if condition[offset(i, shape, condition_steps)]:
            out[i] = a[offset(i, shape, a_steps)]
        else:
            out[i] = b[offset(i, shape, b_steps)]


def where(condition, a, b):
    """a where the boolean array `condition` holds, else b; all three broadcast."""
    condition, a, b = asarrays(condition, a, b)
    shape, way = broadcast(tuple(condition.shape), tuple(a.shape), tuple(b.shape))
    out = empty(shape, np.result_type(a.dtype, b.dtype))
    launch(_where, out.size, flat(condition), flat(a), flat(b), flat(out), *way)
    return out


@cuda.jit
def _dropout(x, mask, scale, out, shape, x_steps, mask_steps):
    i = cuda.grid(1)
    if i < out.size:
        if mask[offset(i, shape, mask_steps)]:
            out[i] = x[offset(i, shape, x_steps)] * scale
        else:
            out[i] = out.dtype.type(0)


def dropout(x, mask, *, scale):
    """x * scale where the boolean `mask` holds, else 0; `mask` broadcasts to x."""
    x, mask = asarrays(x, mask)
    shape, way = broadcast(tuple(x.shape), tuple(mask.shape))
    out = empty(shape, x.dtype)
    launch(_dropout, out.size, flat(x), flat(mask), x.dtype.type(scale), flat(out), *way)
    return out
