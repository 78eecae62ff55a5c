"""Products with a matrix of few entries, which are what trains."""

from typing import Any

from ...errors import ShapeError
from ..tensor import Tensor, apply
from ..vjps import defvjp


def sparse_matmul(x: Any, values: Any, index: Any, k: int) -> Tensor:
    """x S, S (d, k) with `values` at the places `index`, i k + j for row i and column j: (n, d), (m,), (m,) -> (n, k).

    The places are integers in [0, d k), rising; the caller vouches for them.
    """
    if len(x.shape) != 2 or len(values.shape) != 1 or tuple(index.shape) != tuple(values.shape):
        found = f"{tuple(x.shape)}, {tuple(values.shape)} and {tuple(index.shape)}"
        raise ShapeError(f"sparse_matmul needs x (n, d), and values and places of one length, found shapes {found}.")
    return apply("sparse_matmul", x, values, index, k=k)


def _for_x(K: Any, out: Any, x: Any, values: Any, index: Any, k: int) -> Any:
    d = x.shape[1]
    return lambda g: K.sparse_matmul_t(g, values, index, d=d)


def _for_values(K: Any, out: Any, x: Any, values: Any, index: Any, k: int) -> Any:
    return lambda g: K.sparse_values_grad(x, g, index)


defvjp("sparse_matmul", _for_x, _for_values, None)
