"""What inputs of a layer are boiled down to while they pass: their principal components, or their second moments."""

import math

import numpy as np

from .svd import settled

BLOCK = 256
"""How many rows, at least, are taken into the principal components at once: fixed, so that it does not matter how data is batched."""


class Principal:
    """The first principal components of rows (n, d), by incremental PCA: Ross et al. 2008, section 3.1, with a mean that moves.

    Beside the `count` wanted as many again and 8 are kept, so that what comes later can still change the order; with all d kept it is
    exact. Memory: O((count + 256) d).
    """

    def __init__(self, d: int, count: int) -> None:
        self.seen = 0
        self.total = 0.0  # sum of the squared distances from the mean
        self._count, self._kept = min(count, d), min(2 * count + 8, d)
        self._mean = np.zeros(d)
        self._held = np.zeros((0, d))  # components, each times its singular value
        self._waiting: list[np.ndarray] = []

    def add(self, rows: np.ndarray) -> None:
        """Rows (n, d)."""
        self._waiting.append(np.array(rows, np.float64))
        size = max(BLOCK, self._kept)
        while sum(map(len, self._waiting)) >= size:
            together = np.concatenate(self._waiting)
            self._waiting = [together[size:]]
            self._take(together[:size])

    def _take(self, rows: np.ndarray) -> None:
        n, m = self.seen, len(rows)
        mean = rows.mean(axis=0)
        apart = math.sqrt(n * m / (n + m)) * (self._mean - mean)
        stacked = np.vstack([self._held, rows - mean, apart])
        self.total += float(np.sum(np.square(stacked[len(self._held) :])))
        _, s, v = np.linalg.svd(stacked, full_matrices=False)
        self._held = s[: self._kept, None] * v[: self._kept]
        self._mean = (n * self._mean + m * mean) / (n + m)
        self.seen += m

    def components(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The components (c, d), orthonormal, their singular values, falling, and the shares of the variance that they explain (c,).

        c is the count wanted, or less if the rows span less.
        """
        if rest := [rows for rows in self._waiting if len(rows)]:
            self._waiting = []
            self._take(np.concatenate(rest))
        values = np.linalg.norm(self._held, axis=1)
        spanned = int(np.sum(values > values.max(initial=0.0) * 1e-7))
        values = values[: min(self._count, spanned)]
        directions = self._held[: len(values)] / values[:, None]
        turned, _, _ = settled(directions.T, values, directions)
        return turned.T, values, np.square(values) / self.total if self.total else values


class SecondMoments:
    """The mean of X^T X over the blocks of rows X (n, d) that it is given, each divided by its largest entry: (d, d).

    Divided as the code of CorDA does, so that no batch outweighs the others.
    """

    def __init__(self, d: int) -> None:
        self.blocks = 0
        self._sum = np.zeros((d, d))

    def add(self, rows: np.ndarray) -> None:
        """Rows (n, d)."""
        if largest := float(np.abs(rows).max(initial=0.0)):
            rows = rows / largest
            self._sum += rows.T @ rows
        self.blocks += 1

    def mean(self) -> np.ndarray:
        """(d, d), symmetric."""
        return self._sum / max(self.blocks, 1)
