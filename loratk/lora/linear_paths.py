"""Shorter ways of methods on `Linear`, which has the rows of x at hand: no matrix (d, k) is made, nor its gradient."""

from typing import Any

from ..autograd import Tensor, ops
from ..nn import Linear

SPARSE = 1 / 16
"""The share of entries up to which a product with them alone is the shorter way: (784, 512) and 64 rows, measured."""


def rows_of(x: Tensor, mask: Any) -> Tensor:
    """The inputs after dropout, as rows: (..., d) -> (n, d)."""
    x = x if mask is None else ops.mul(x, mask)
    return x.reshape(x.size // x.shape[-1] if x.shape[-1] else 0, x.shape[-1])


def lokr_linear(module: Linear, w: Any, x: Tensor, adapter: Any, scaling: float, mask: Any, bias: Any) -> Tensor:
    """x W + bias + scaling x (W1 kron W2): x as (n, d1, d2) times W2 along the last axis, then W1 along the other."""
    p, y = adapter.tensors(), ops.linear(x, w, bias)
    rows = rows_of(x, mask)
    d1 = p["lokr_W1" if "lokr_W1" in p else "lokr_A1"].shape[0]
    n, d2 = rows.shape[0], rows.shape[1] // d1
    z = _times(rows.reshape(n * d1, d2), p, "2")
    k2 = z.shape[1]
    z = _times(z.reshape(n, d1, k2).transpose(0, 2, 1).reshape(n * k2, d1), p, "1")
    update = z.reshape(n, k2, z.shape[1]).transpose(0, 2, 1) * scaling
    return y + update.reshape(*y.shape)


def _times(x: Tensor, p: Any, number: str) -> Tensor:
    if (whole := p.get(f"lokr_W{number}")) is not None:
        return x @ whole
    return (x @ p[f"lokr_A{number}"]) @ p[f"lokr_B{number}"]


def ia3_linear(module: Linear, w: Any, x: Tensor, adapter: Any, scaling: float, mask: Any, bias: Any) -> Tensor:
    """l * (x W + bias), l * x W + bias, or (l * x) W + bias."""
    ((name, factors),) = adapter.tensors().items()
    if name == "ia3_inputs":
        return ops.linear(x * factors, w, bias)
    if name == "ia3_outputs":
        return ops.linear(x, w, bias) * factors
    y = ops.linear(x, w) * factors
    return y if bias is None else y + bias


def sparse_linear(module: Linear, w: Any, x: Tensor, adapter: Any, scaling: float, mask: Any, bias: Any) -> Tensor:
    """x W + bias + scaling x S, by the entries of S alone where these are few."""
    values, index, y = adapter.sparse_values * scaling, adapter.sparse_index, ops.linear(x, w, bias)
    d, k = w.shape
    rows = rows_of(x, mask)
    few = values.size <= SPARSE * d * k
    update = ops.sparse_matmul(rows, values, index, k) if few else rows @ ops.scatter(values, index, d * k).reshape(d, k)
    return y + update.reshape(*y.shape)


PATHS = {"lokr": lokr_linear, "ia3": ia3_linear, "sparse": sparse_linear}
