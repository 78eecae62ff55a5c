"""Low-rank updates of an array as one product of two factors for the matrix that its bytes are, row by row."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Factors = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True, eq=False)
class Product:
    """scale A B, (d, r) and (r, k), for some columns of a weight; `turned` if the weight lies output first: (out, in, ...)."""

    a: np.ndarray
    b: np.ndarray
    scale: float
    columns: slice
    turned: bool

    def factors(self, shape: Sequence[int]) -> Factors:
        """left (m, r), right (r, n), float64, of the update of an array of this shape as the matrix (m, n) of `matrix`."""
        m, n = matrix(shape, self.turned)
        a, b = self.a.astype(np.float64), self.b.astype(np.float64) * self.scale
        rank = a.shape[1]
        if not self.turned:
            return a, _within(b, self.columns, n)
        channels, *window = shape[1:]
        places = a.reshape(*window, channels, rank)  # loratk counts inputs as (window, channels), torch as (channels, window)
        right = np.moveaxis(places, (-1, -2), (0, 1)).reshape(rank, n)
        return np.ascontiguousarray(_within(b, self.columns, m).T), right


def matrix(shape: Sequence[int], turned: bool) -> tuple[int, int]:
    """The rows and columns of an array as a matrix in the order of its bytes: a row is an output if it is turned, else an input."""
    return (shape[0], math.prod(shape[1:])) if turned else (math.prod(shape[:-1]), shape[-1])


def joined(products: Sequence[Product], shape: Sequence[int]) -> Factors:
    """The factors of a sum of updates of one order, as `Product.factors`."""
    pairs = [product.factors(shape) for product in products]
    if len(pairs) == 1:
        return pairs[0]
    return np.concatenate([left for left, _ in pairs], axis=1), np.concatenate([right for _, right in pairs])


def _within(b: np.ndarray, columns: slice, count: int) -> np.ndarray:
    """(r, k) at its columns among so many, the others zero."""
    if b.shape[1] == count:
        return b
    whole = np.zeros((len(b), count))
    whole[:, columns] = b
    return whole
