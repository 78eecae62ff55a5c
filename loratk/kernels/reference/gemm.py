"""Matrix products, plain and with a frozen weight."""

import numpy as np

__all__ = ["freeze_weight", "frozen_matmul", "frozen_matmul_t", "matmul"]


def matmul(a, b):
    """Matrix product over the last two axes, leading axes broadcast: (..., n, d), (..., d, k) -> (..., n, k)."""
    return np.matmul(a, b)


class FrozenArray:
    """A frozen weight kept as the array it came from: the plainest handle there is.

    Every backend's handle has these members; no one above the kernels knows how it stores the weight.
    """

    def __init__(self, w):
        self._w = np.ascontiguousarray(w)
        self.shape, self.dtype, self.nbytes = self._w.shape, self._w.dtype, 0  # nbytes: beyond the array itself

    def matmul(self, x):
        """x W: (..., d) -> (..., k)."""
        return np.matmul(x, self._w)

    def matmul_t(self, g):
        """g W^T: (..., k) -> (..., d)."""
        return np.matmul(g, self._w.T)

    def numpy(self):
        """The weight as a NumPy array (d, k)."""
        return self._w


def freeze_weight(w):
    """A weight prepared once for many products: (d, k) -> a handle with `matmul`, `matmul_t`, `numpy`, `nbytes`."""
    return FrozenArray(w)


def frozen_matmul(x, w):
    """x W with a frozen W: (..., d), handle (d, k) -> (..., k)."""
    return w.matmul(x)


def frozen_matmul_t(g, w):
    """g W^T with a frozen W: (..., k), handle (d, k) -> (..., d)."""
    return w.matmul_t(g)
