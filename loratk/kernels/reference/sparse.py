"""Products with a matrix of few entries: S (d, k) has the numbers `values` at the places `index`, i k + j for row i and column j."""

import numpy as np

__all__ = ["sparse_matmul", "sparse_matmul_t", "sparse_values_grad"]


def sparse_matmul(x, values, index, *, k):
    """x S: (n, d), (m,), integers (m,) in [0, d k), rising -> (n, k)."""
    return x @ _dense(values, index, x.shape[1], k)


def sparse_matmul_t(g, values, index, *, d):
    """g S^T: (n, k), (m,), integers (m,) in [0, d k), rising -> (n, d)."""
    return g @ _dense(values, index, d, g.shape[1]).T


def sparse_values_grad(x, g, index):
    """The entries of x^T g at the places `index`: (n, d), (n, k), integers (m,) in [0, d k), rising -> (m,)."""
    i, j = np.divmod(index, g.shape[1])
    return np.sum(x[:, i] * g[:, j], axis=0, dtype=x.dtype)


def _dense(values, index, d, k):
    out = np.zeros(d * k, values.dtype)
    out[index] = values
    return out.reshape(d, k)
