"""The two random matrices that all layers of a VeRA adapter share, drawn from a seed: kept once, whatever the number of layers."""

from __future__ import annotations

import threading
from collections import OrderedDict

import numpy as np

KEPT = 16
"""Streams that are kept in memory; of further ones the oldest is drawn again when it is needed."""
DOWN, UP = 0, 1


class _Stream:
    """The rows of one matrix, as many as were ever asked for; more are drawn from where the last ended."""

    def __init__(self, seed: int, side: int, rank: int) -> None:
        self._rng = np.random.default_rng([seed, side])
        self._lock = threading.Lock()
        self._rows = {np.dtype(np.float32): np.empty((0, rank), np.float32)}

    def rows(self, count: int, dtype: np.dtype) -> np.ndarray:
        with self._lock:
            single = self._rows[np.dtype(np.float32)]
            if count > len(single):
                more = self._rng.random((count - len(single), single.shape[1]), np.float32)
                more = (more * np.float32(2) - np.float32(1)) * np.float32(3**0.5)
                single = np.concatenate([single, more])
                single.flags.writeable = False
                self._rows = {np.dtype(np.float32): single}
            if dtype not in self._rows:
                self._rows[dtype] = single.astype(dtype)
                self._rows[dtype].flags.writeable = False
            return self._rows[dtype][:count]


_streams: OrderedDict[tuple[int, int, int], _Stream] = OrderedDict()
_lock = threading.Lock()


def projection(seed: int, d: int, k: int, rank: int, dtype: np.dtype | type) -> tuple[np.ndarray, np.ndarray]:
    """The shared matrices A (d, r) and B (r, k) of a layer, entries uniform with mean 0 and variance 1; read-only views.

    A is the first d rows of a stream, B the transpose of the first k of another: float32 numbers sqrt(3) (2 u - 1) row by row, u from
    NumPy's `default_rng([seed, 0]).random` and `default_rng([seed, 1]).random`. So a layer's matrices do not depend on what other layers
    there are, and all layers share memory.
    """
    return _rows(seed, DOWN, rank, d, np.dtype(dtype)), _rows(seed, UP, rank, k, np.dtype(dtype)).T


def gain(d: int, rank: int) -> float:
    """What the product of the two is multiplied by: the spreads sqrt(2 / d) and sqrt(2 / r) of He et al. 2015, eq. 10."""
    return 2 / (d * rank) ** 0.5


def _rows(seed: int, side: int, rank: int, count: int, dtype: np.dtype) -> np.ndarray:
    key = seed, side, rank
    with _lock:
        stream = _streams.pop(key, None) or _Stream(*key)
        _streams[key] = stream
        while len(_streams) > KEPT:
            _streams.popitem(last=False)
    return stream.rows(count, dtype)
