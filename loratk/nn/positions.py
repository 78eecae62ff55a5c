"""Where in a sequence: sinusoidal positions."""

from typing import Any

import numpy as np

from ..autograd import Tensor
from ..errors import ShapeError
from .linear import positive
from .module import Module


def sinusoids(t: int, d: int) -> np.ndarray:
    """sin(i / 10000^(2j/d)) in column 2j, the cosine in column 2j + 1: (t, d), float64. Vaswani et al. 2017, section 3.5."""
    columns = np.arange(d)
    angles = np.arange(t)[:, None] / 10000.0 ** (2 * (columns // 2) / d)
    return np.where(columns % 2 == 0, np.sin(angles), np.cos(angles))


class PositionalEncoding(Module):
    """x plus a sinusoid of each position: (..., t, d) -> (..., t, d). Vaswani et al. 2017, section 3.5.

    There is no longest sequence, and nothing that trains or is stored.
    """

    def __init__(self, d: int) -> None:
        positive(d=d)
        self.d, self._table = d, np.zeros((0, d))

    def forward(self, x: Any) -> Tensor:
        """(..., t, d) -> (..., t, d)."""
        x = self.input(x)
        if x.ndim < 2 or x.shape[-1] != self.d:
            raise ShapeError(f"PositionalEncoding needs x (..., time, {self.d}), found shape {x.shape}.")
        t = x.shape[-2]
        if t > len(self._table):
            self._table = sinusoids(t, self.d)
        return x + self._table[:t].astype(x.dtype)

    def describe(self) -> str:
        """The width, for the repr."""
        return str(self.d)
