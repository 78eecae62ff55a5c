"""Element by element: arithmetic with broadcasting, powers, roots and trigonometry."""

import math
from typing import Any

import numpy as np

from ...errors import ConfigError, DtypeError
from ..tensor import Tensor, apply
from ..vjps import defvjp


def add(a: Any, b: Any) -> Tensor:
    """a + b, broadcast."""
    return apply("add", a, b)


defvjp("add", lambda K, out, a, b: lambda g: g)


def sub(a: Any, b: Any) -> Tensor:
    """a - b, broadcast."""
    return apply("sub", a, b)


defvjp("sub", lambda K, out, a, b: lambda g: g, lambda K, out, a, b: K.neg)


def mul(a: Any, b: Any) -> Tensor:
    """a b, element by element, broadcast."""
    return apply("mul", a, b)


defvjp("mul", lambda K, out, a, b: lambda g: K.mul(g, b), lambda K, out, a, b: lambda g: K.mul(g, a))


def div(a: Any, b: Any) -> Tensor:
    """a / b, broadcast."""
    return apply("div", a, b)


defvjp("div", lambda K, out, a, b: lambda g: K.div(g, b), lambda K, out, a, b: lambda g: K.neg(K.mul(g, K.div(out, b))))


def neg(x: Any) -> Tensor:
    """-x."""
    return apply("neg", x)


defvjp("neg", lambda K, out, x: K.neg)


def power(x: Any, exponent: float) -> Tensor:
    """x to a constant real power."""
    return apply("power", x, exponent=float(exponent))


def _power(K: Any, out: Any, x: Any, exponent: float) -> Any:
    factor = K.asarray(x.dtype.type(exponent).reshape(()))
    if exponent == 0.0:  # 0 * x^-1 would be NaN at x = 0
        return lambda g: K.mul(g, factor)
    return lambda g: K.mul(g, K.mul(factor, K.power(x, exponent=exponent - 1)))


defvjp("power", _power)


def square(x: Any) -> Tensor:
    """x squared."""
    return apply("square", x)


defvjp("square", lambda K, out, x: lambda g: K.mul(g, K.add(x, x)))


def sqrt(x: Any) -> Tensor:
    """Square root."""
    return apply("sqrt", x)


defvjp("sqrt", lambda K, out, x: lambda g: K.div(g, K.add(out, out)))


def exp(x: Any) -> Tensor:
    """e to the x."""
    return apply("exp", x)


defvjp("exp", lambda K, out, x: lambda g: K.mul(g, out))


def log(x: Any) -> Tensor:
    """Natural logarithm."""
    return apply("log", x)


defvjp("log", lambda K, out, x: lambda g: K.div(g, x))


def sin(x: Any) -> Tensor:
    """Sine of x in radians."""
    return apply("sin", x)


defvjp("sin", lambda K, out, x: lambda g: K.mul(g, K.cos(x)))


def cos(x: Any) -> Tensor:
    """Cosine of x in radians."""
    return apply("cos", x)


defvjp("cos", lambda K, out, x: lambda g: K.neg(K.mul(g, K.sin(x))))


def absolute(x: Any) -> Tensor:
    """|x|; the derivative at 0 is 0."""
    return apply("absolute", x)


defvjp("absolute", lambda K, out, x: lambda g: K.sub(K.relu_grad(g, x), K.relu_grad(g, K.neg(x))))


def maximum(a: Any, b: Any) -> Tensor:
    """The larger of a and b, broadcast; where they are equal the gradient goes half to each."""
    return apply("maximum", a, b)


def minimum(a: Any, b: Any) -> Tensor:
    """The smaller of a and b, broadcast; where they are equal the gradient goes half to each."""
    return apply("minimum", a, b)


def _share(K: Any, g: Any, ahead: Any) -> Any:
    """g where `ahead` > 0, half of it where `ahead` is 0, nothing where it is negative."""
    half = K.asarray(g.dtype.type(0.5).reshape(()))
    return K.mul(half, K.sub(K.add(g, K.relu_grad(g, ahead)), K.relu_grad(g, K.neg(ahead))))


defvjp(
    "maximum",
    lambda K, out, a, b: lambda g: _share(K, g, K.sub(a, b)),
    lambda K, out, a, b: lambda g: _share(K, g, K.sub(b, a)),
)
defvjp(
    "minimum",
    lambda K, out, a, b: lambda g: _share(K, g, K.sub(b, a)),
    lambda K, out, a, b: lambda g: _share(K, g, K.sub(a, b)),
)


def clip(x: Any, low: float | None = None, high: float | None = None) -> Tensor:
    """x held between two constants; the gradient passes strictly between them. Raises ConfigError if low > high."""
    if low is None and high is None:
        raise ConfigError("clip needs a low or a high bound, found neither.")
    if not (-math.inf if low is None else low) <= (math.inf if high is None else high):  # a NaN fails too
        raise ConfigError(f"clip needs low <= high, found {low} and {high}.")
    return apply("clip", x, low=low, high=high)


def _clip(K: Any, out: Any, x: Any, low: float | None, high: float | None) -> Any:
    def pull(g: Any) -> Any:
        for bound, sign in ((low, 1), (high, -1)):
            if bound is not None:
                edge = K.asarray(x.dtype.type(bound).reshape(()))
                g = K.relu_grad(g, K.sub(x, edge) if sign == 1 else K.sub(edge, x))
        return g

    return pull


defvjp("clip", _clip)


def where(condition: Any, a: Any, b: Any) -> Tensor:
    """a where the boolean array `condition` holds, else b."""
    condition = condition if isinstance(condition, Tensor) else np.asarray(condition)
    if condition.dtype != np.bool_:
        raise DtypeError(f"where needs a condition of bool, found dtype {condition.dtype}.")
    return apply("where", condition, a, b)


def _zero(K: Any, g: Any) -> Any:
    return K.asarray(g.dtype.type(0).reshape(()))


defvjp(
    "where",
    None,
    lambda K, out, condition, a, b: lambda g: K.where(condition, g, _zero(K, g)),
    lambda K, out, condition, a, b: lambda g: K.where(condition, _zero(K, g), g),
)
