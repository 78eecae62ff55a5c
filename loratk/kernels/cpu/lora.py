"""The LoRA linear layer: thin products around the frozen one, added into its result instead of into new arrays."""

import numpy as np

from ..reference.chain import LANES
from .chain import lora_chain, lora_chain_grad
from .gemm import product

__all__ = ["lora_linear", "lora_linear_grad"]

FEW_ROWS = 16  # below which threads share out columns, unless one does it all
ONE_CALL = 1 << 23  # multiplications below which a second thread is not worth waking


def _scale(x, factor):
    return x if factor == 1 else x * x.dtype.type(factor)


def _is_chain(x, w, mask):
    """Whether the layer goes as a chain of one: one compiled call each way, rows shared out over the threads."""
    n = x.shape[0]
    return mask is None and (n >= FEW_ROWS or 0 < n * w.shape[0] * w.shape[1] < ONE_CALL)


def lora_linear(x, w, a, b, mask=None, bias=None, *, scaling):
    """x W + bias + scaling (x' A) B and x' A, x' = x or x * mask: (n, d), handle (d, k), (d, r), (r, k) -> (n, k), (n, r)."""
    if _is_chain(x, w, mask):
        y, kept = lora_chain(x, w, bias, a, b, scalings=(scaling,), relus=(False,))
        return y, np.ascontiguousarray(kept.reshape(len(x), -1)[:, : a.shape[1]])
    xa = product(x if mask is None else x * mask, a)
    return w.matmul(x, low=(_scale(xa, scaling), b), bias=bias), xa


def lora_linear_grad(g, x, xa, w, a, b, mask=None, *, scaling, need_x=True):
    """Gradients of `lora_linear` for x, A and B: (n, k) -> (n, d) or None, (d, r), (r, k)."""
    if _is_chain(x, w, mask):
        kept = xa if a.shape[1] % LANES == 0 else np.pad(xa, ((0, 0), (0, -a.shape[1] % LANES)))
        return lora_chain_grad(g, x, g, kept.reshape(-1), w, None, a, b, scalings=(scaling,), relus=(False,), need_x=need_x)
    gb = product(g, _scale(b, scaling).T)
    dx = None
    if need_x and mask is None:
        dx = w.matmul_t(g, low=(gb, a.T))
    elif need_x:
        dx = w.matmul_t(g)
        dx += product(gb, a.T) * mask
    return dx, product((x if mask is None else x * mask).T, gb), product(_scale(xa, scaling).T, g)
