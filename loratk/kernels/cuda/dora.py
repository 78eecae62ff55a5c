"""The DoRA linear layer, forward and backward, and the column norms it divides by: built from other kernels."""

import numpy as np

from .arrays import asarray, asarrays
from .elementwise import add, div, maximum, mul, sqrt, square
from .gemm import product
from .lora import lora_linear, lora_linear_grad
from .reduce import sum_over
from .shape import broadcast_copy

__all__ = ["dora_linear", "dora_linear_grad", "lora_column_norm"]


def lora_column_norm(w, a, b, *, scaling):
    """Euclidean norm of each column of W + scaling A B: handle (d, k), (d, r), (r, k) -> (k,). Liu et al. 2024 (DoRA), eq. 5."""
    weight = product(a, b, scale=scaling, add_to=broadcast_copy(w.array, w.shape))
    return sqrt(sum_over(square(weight), axis=0))


def dora_linear(x, w, a, b, m, bias=None, *, scaling):
    """m/c z + bias with z = x W + scaling (x A) B, and c, z, x A; c are the column norms of W + scaling A B.

    (n, d), handle (d, k), (d, r), (r, k), (k,), (k,) -> (n, k), (k,), (n, k), (n, r). Liu et al. 2024 (DoRA), eq. 5.
    """
    x, a, b, m = asarrays(x, a, b, m)
    least = asarray(np.asarray(np.finfo(x.dtype).tiny, x.dtype))  # a column of zeros stays one
    c = maximum(lora_column_norm(w, a, b, scaling=scaling), least)
    z, xa = lora_linear(x, w, a, b, scaling=scaling)
    y = mul(z, div(m, c))
    return y if bias is None else add(y, bias), c, z, xa


def dora_linear_grad(g, x, c, z, xa, w, a, b, m, *, scaling, need_x=True):
    """Gradients of `dora_linear` for x, A, B and m: (n, k) -> (n, d) or None, (d, r), (r, k), (k,).

    c, z and xa are what `dora_linear` returned; c is a constant (Liu et al. 2024, section 4.3).
    """
    dx, da, db = lora_linear_grad(mul(g, div(m, c)), x, xa, w, a, b, scaling=scaling, need_x=need_x)
    return dx, da, db, div(sum_over(mul(g, z), axis=0), c)
