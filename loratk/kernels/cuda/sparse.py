"""Products with a matrix of few entries: on a GPU the matrix itself is the shortest way, but for the gradient of the entries."""

from numba import cuda

from .arrays import asarrays, empty, flat, reshaped
from .device import launch
from .gemm import matmul
from .shape import need_inside, scatter, transpose

__all__ = ["sparse_matmul", "sparse_matmul_t", "sparse_values_grad"]


def sparse_matmul(x, values, index, *, k):
    """x S: (n, d), (m,), integers (m,) in [0, d k), rising -> (n, k)."""
    x, values, index = asarrays(x, values, index)
    d = x.shape[1]
    return matmul(x, reshaped(scatter(values, index, size=d * k), (d, k)))


def sparse_matmul_t(g, values, index, *, d):
    """g S^T: (n, k), (m,), integers (m,) in [0, d k), rising -> (n, d)."""
    g, values, index = asarrays(g, values, index)
    k = g.shape[1]
    return matmul(g, transpose(reshaped(scatter(values, index, size=d * k), (d, k)), axes=(1, 0)))


@cuda.jit
def _dots(x, g, index, out, n, d, k, zero):
    e = cuda.grid(1)
    if e < out.size:
        i, j = index[e] // k, index[e] % k
        total = zero
        for s in range(n):
            total += x[s * d + i] * g[s * k + j]
        out[e] = total


def sparse_values_grad(x, g, index):
    """The entries of x^T g at the places `index`: (n, d), (n, k), integers (m,) in [0, d k), rising -> (m,)."""
    x, g, index = asarrays(x, g, index)
    (n, d), k = x.shape, g.shape[1]
    need_inside("sparse_values_grad", index, d * k)
    out = empty(index.shape, x.dtype)
    launch(_dots, out.size, flat(x), flat(g), flat(index), out, n, d, k, out.dtype.type(0))
    return out
