"""What is to be done to each array of a checkpoint, piece by piece: copied, merged row by row, or made anew as a whole."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..io.safetensors_header import size_of
from ..kernels.reference.merge import Measures, merge_rows, sums_dtype
from .checksums import ArrayChecksum
from .files import Source, raw, stored_dtype
from .products import Product, joined, matrix
from .rounding import KINDS, Rounding, added, measured, unit_for

PIECE = 16 << 20
"""Bytes of an array that a thread takes on at a time."""
STEP = 1 << 20
"""Bytes that it reads, merges, sums up and writes before the next: few enough to stay in the caches, and so many that Python's lock, for
which threads wait in between, costs little."""
COMPILED = 1 << 18
"""Numbers of an array from which the compiled kernel is used."""

Sink = Callable[[int, Any], None]
"""Takes bytes of an array, and the place in it where they begin."""
Make = Callable[[np.ndarray], tuple[np.ndarray, Measures | None]]
"""Given an array as it is stored, what it becomes, and what rounding did. Raises LoratkError."""


@dataclass(frozen=True, eq=False)
class Item:
    """An array of the result: where neither `products` nor `make` is given, a copy of that of the source.

    dtype: what safetensors calls that of the result. key: of random numbers for stochastic rounding, else None.
    """

    name: str
    dtype: str
    products: Sequence[Product] = ()
    make: Make | None = None
    key: int | None = None

    @property
    def copied(self) -> bool:
        """Whether the array stays as it is."""
        return not self.products and self.make is None


@dataclass(frozen=True)
class Done:
    """An array that is written: the checksums of what it was and is, what rounding did, how many of its numbers are not finite now."""

    name: str
    before: str
    after: str
    rounding: Rounding | None = None
    bad: int = 0


class Work:
    """An item while it is worked on: its pieces may be run in any order by any threads; then `done`."""

    _whole = threading.Lock()  # arrays that are made as a whole need much memory, and use all threads by themselves

    def __init__(self, item: Item, source: Source, sink: Sink, stopped: Callable[[], bool] = lambda: False) -> None:
        self.item, self._source, self._sink, self._stopped = item, source, sink, stopped
        self._dtype, self._shape = source.infos[item.name]
        self._before = ArrayChecksum(self._dtype, self._shape, source.size(item.name))
        self._after = self._before if item.copied else ArrayChecksum(item.dtype, self._shape, size_of(item.dtype, self._shape))
        self._lock = threading.Lock()
        self._factors: Any = None
        self._measures: dict[int, Measures] = {}
        self._left = len(self.pieces())

    def pieces(self) -> list[tuple[int, int]]:
        """Where each piece begins and ends: bytes of a copy, rows of a product; one of an array that is made as a whole."""
        if self.item.make is not None:
            return [(0, 1)]
        count, step = self._source.size(self.item.name), PIECE
        if self.item.products:
            count, wide = matrix(self._shape, self.item.products[0].turned)
            step = _rows(PIECE, wide * stored_dtype(self._dtype).itemsize)
        return [(at, min(at + step, count)) for at in range(0, count, step)] or [(0, 0)]

    def run(self, start: int, stop: int) -> bool:
        """Do one piece. Whether it was the last."""
        if self.item.make is not None:
            self._make(self.item.make)
        elif self.item.products:
            self._merge(start, stop)
        else:
            self._copy(start, stop, self._sink)
        with self._lock:
            self._left -= 1
            return self._left == 0

    def done(self) -> Done:
        """What came of it, after the last piece."""
        self._source.release(self.item.name)
        self._factors = None
        parts = [self._measures[start] for start in sorted(self._measures)]  # in this order, so that the sums are always the same
        total = added(parts) if parts else None
        rounding = measured(total) if total is not None else None
        return Done(self.item.name, self._before.hex(), self._after.hex(), rounding, total.bad if total is not None else 0)

    def _copy(self, start: int, stop: int, sink: Sink) -> None:
        buffer = bytearray(min(STEP, stop - start))
        for at in range(start, stop, STEP):
            if self._stopped():
                return
            piece = memoryview(buffer)[: min(STEP, stop - at)]
            self._source.read(self.item.name, piece, at)
            self._before.add(at, piece)
            sink(at, piece)

    def _merge(self, start: int, stop: int) -> None:
        factor, unit, merge, step = self._prepared()
        stored = stored_dtype(self._dtype)
        wide = matrix(self._shape, self.item.products[0].turned)[1]
        step = _rows(step, wide * stored.itemsize)
        buffer = np.empty((min(step, stop - start), wide), stored.newbyteorder("<"))
        found: list[Measures] = []
        for row in range(start, stop, step):
            if self._stopped():
                return
            block, at = buffer[: min(step, stop - row)], row * wide * stored.itemsize
            self._source.read(self.item.name, raw(block), at)
            self._before.add(at, raw(block))
            numbers = block.astype(stored, copy=False).view("u2" if self._dtype == "F16" else stored)
            left = factor[row : row + len(block)]
            out, measures = merge(numbers, left, kind=KINDS[self._dtype], unit=unit, key=self.item.key, first=row * wide)
            self._after.add(at, raw(out))
            self._sink(at, raw(out))
            found.append(measures)
        sums = added(found)
        self._measures[start] = sums._replace(update=sums.update / unit**2, lost=sums.lost / unit**2)

    def _prepared(self) -> tuple[np.ndarray, float, Callable[..., tuple[np.ndarray, Measures]], int]:
        """The left factor, the unit of measures, the kernel with the right factor, and bytes for one call; made once for all pieces."""
        with self._lock:
            if self._factors is None:
                left, right = joined(self.item.products, self._shape)
                dtype, unit = sums_dtype(KINDS[self._dtype], self.item.key is not None), unit_for(left, right)
                with np.errstate(over="ignore"):
                    left, right = left.astype(dtype), np.ascontiguousarray(right, dtype)
                merge: Callable[..., tuple[np.ndarray, Measures]] = merge_rows
                step = STEP // 8  # NumPy makes many arrays on the way
                if len(left) * right.shape[1] >= COMPILED:
                    from ..kernels.cpu.merge import merge_rows as merge
                    from ..kernels.cpu.merge import pack_right

                    right, step = pack_right(right), STEP
                self._factors = left, unit, lambda w, left, **options: merge(w, left, right, **options), step
            return self._factors

    def _make(self, make: Make) -> None:
        with self._whole:
            if self._stopped():
                return
            self._copy(0, self._source.size(self.item.name), lambda at, data: None)
            array, measures = make(self._source.stored(self.item.name))
            data = raw(array)
            self._after.add(0, data)
            self._sink(0, data)
            if measures is not None:
                self._measures[0] = measures


def _rows(size: int, row: int) -> int:
    """So many rows as fit in a size, a multiple of 8, as checksums want whole words."""
    return max(size // max(row, 1) // 8 * 8, 8)
