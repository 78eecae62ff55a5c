"""Frozen weights, packed once for many products."""

import math
import threading

import numpy as np

from .gemm import multiply
from .pack import pack

__all__ = ["freeze_weight", "frozen_matmul", "frozen_matmul_t"]

_packing = threading.Lock()  # once for all: others keep the addresses of what is packed


class PackedWeight:
    """A frozen weight (d, k), packed at its first product for x W, and at its first g W^T for that; each as large as the weight."""

    def __init__(self, w):
        self._w = np.ascontiguousarray(w)
        self.shape, self.dtype = self._w.shape, self._w.dtype
        self._forward = self._backward = None
        self.plans = {}  # of chains that begin here: see `chain`

    def __reduce__(self):  # copies and pickles are packed anew, and have no plans, which hold addresses
        return PackedWeight, (self._w,)

    @property
    def nbytes(self):
        """Bytes held beyond the array itself."""
        return sum(packed.nbytes for packed in (self._forward, self._backward) if packed is not None)

    def matmul(self, x, *, low=None, bias=None):
        """x W, plus the product of two thin matrices, plus a bias: (..., d) -> (..., k); with `low` and `bias` x is (n, d)."""
        return self._rows(x, self.forward(), self.shape[1], low, bias)

    def matmul_t(self, g, *, low=None):
        """g W^T, plus the product of two thin matrices: (..., k) -> (..., d); with `low` g is (n, k)."""
        return self._rows(g, self.backward(), self.shape[0], low, None)

    def forward(self):
        """W packed, for x W."""
        if self._forward is None:
            with _packing:
                self._forward = pack(self._w) if self._forward is None else self._forward
        return self._forward

    def backward(self):
        """W^T packed, for g W^T."""
        if self._backward is None:
            with _packing:
                self._backward = pack(self._w.T) if self._backward is None else self._backward
        return self._backward

    def numpy(self):
        """The weight as a NumPy array (d, k)."""
        return self._w

    @staticmethod
    def _rows(x, packed, k, low, bias):
        rows = x if x.ndim == 2 else np.ascontiguousarray(x).reshape(math.prod(x.shape[:-1]), x.shape[-1])
        y = multiply(rows, packed, k, low=low, bias=bias)
        return y if x.ndim == 2 else y.reshape(*x.shape[:-1], k)


def freeze_weight(w):
    """A weight prepared once for many products: (d, k) -> a handle with `matmul`, `matmul_t`, `numpy`, `nbytes`."""
    return PackedWeight(w)


def frozen_matmul(x, w):
    """x W with a frozen W: (..., d), handle (d, k) -> (..., k)."""
    return w.matmul(x)


def frozen_matmul_t(g, w):
    """g W^T with a frozen W: (..., k), handle (d, k) -> (..., d)."""
    return w.matmul_t(g)
