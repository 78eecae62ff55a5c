"""Bytes of open files by their place, from any thread, and arrays of a checkpoint as they are stored."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import FormatError, StoreError
from ..exchange import Checkpoint
from ..io.bfloat16 import to_bits
from ..io.safetensors_header import DTYPE_OF, NUMPY, size_of

_seeking = threading.Lock()  # where there is no reading at a place: two calls, of which nobody may come between


def read_at(handle: int, buffer: Any, at: int, path: object) -> None:
    """Fill a buffer with bytes from a place on. Raises StoreError, FormatError where the file ends before."""
    view, done = memoryview(buffer).cast("B"), 0
    try:
        while done < len(view):
            count = _read(handle, view[done:], at + done)
            if not count:
                raise FormatError(f"'{path}' ends before the arrays it announces: it was cut short while it was open")
            done += count
    except OSError as error:
        if isinstance(error, StoreError):
            raise
        raise StoreError(f"cannot read '{path}': {error.strerror or error}") from error


def write_at(handle: int, data: Any, at: int) -> None:
    """Write all bytes from a place on. Raises OSError."""
    view = memoryview(data).cast("B")
    done = 0
    while done < len(view):
        done += _write(handle, view[done:], at + done)


def _read(handle: int, view: memoryview, at: int) -> int:
    if hasattr(os, "preadv"):
        return os.preadv(handle, [view], at)
    with _seeking:
        os.lseek(handle, at, os.SEEK_SET)
        piece = os.read(handle, len(view))
    view[: len(piece)] = piece
    return len(piece)


def _write(handle: int, view: memoryview, at: int) -> int:
    if hasattr(os, "pwrite"):
        return os.pwrite(handle, view, at)
    with _seeking:
        os.lseek(handle, at, os.SEEK_SET)
        return os.write(handle, view)


def stored_dtype(dtype: str) -> np.dtype:
    """The dtype of an array as it is stored, by what safetensors calls it: bfloat16 by its bits."""
    return np.dtype("u2") if dtype == "BF16" else NUMPY[dtype].newbyteorder("=")


def plain(stored: np.ndarray, dtype: str) -> np.ndarray:
    """A stored array as numbers: bfloat16 as float32."""
    return (stored.astype(np.uint32) << np.uint32(16)).view(np.float32) if dtype == "BF16" else stored


def raw(array: np.ndarray) -> np.ndarray:
    """The bytes of a stored array in C order, little-endian: (count,) uint8."""
    return np.asarray(array, array.dtype.newbyteorder("<"), order="C").reshape(-1).view(np.uint8)


class Source:
    """The arrays of a checkpoint as they are stored. Where the bytes lie in a file as they are, they are read piece by piece."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        arrays = checkpoint.arrays()
        halves = checkpoint.bfloat16
        self._arrays = arrays
        self.infos = {name: ("BF16" if name in halves else DTYPE_OF[arrays.info(name)[1]], arrays.info(name)[0]) for name in arrays}
        """What safetensors calls the dtype, and the shape."""
        self._loaded: dict[str, np.ndarray] = {}
        self._lock = threading.Lock()

    def size(self, name: str) -> int:
        """Bytes of an array."""
        return size_of(*self.infos[name])

    def read(self, name: str, buffer: Any, at: int) -> None:
        """Fill a buffer with the bytes of an array from a place on."""
        if (place := self._checkpoint.place(name)) is not None:
            read_at(place[0], buffer, place[1] + at, self._checkpoint.path)
            return
        with self._lock:  # HDF5 knows no threads
            if name not in self._loaded:
                self._loaded[name] = raw(self._stored(name))
            held = self._loaded[name]
        view = memoryview(buffer).cast("B")
        view[:] = held[at : at + len(view)].data

    def stored(self, name: str) -> np.ndarray:
        """A whole array as it is stored."""
        dtype, shape = self.infos[name]
        array = np.empty(shape, stored_dtype(dtype).newbyteorder("<"))
        self.read(name, array.reshape(-1).view(np.uint8), 0)
        return array.astype(stored_dtype(dtype), copy=False)

    def release(self, name: str) -> None:
        """Let go of what was loaded of an array."""
        self._loaded.pop(name, None)

    def _stored(self, name: str) -> np.ndarray:
        array = self._arrays[name]
        return to_bits(array) if self.infos[name][0] == "BF16" else array


def sizes(infos: Sequence[tuple[str, tuple[int, ...]]]) -> int:
    """Bytes of some arrays."""
    return sum(size_of(*info) for info in infos)
