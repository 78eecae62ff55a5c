"""An HDF5 tree over a Python file, so that HDF5 reads only checked bytes and never sees a write fail."""

from __future__ import annotations

import atexit
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import Any, BinaryIO

import h5py

from .hdf5_strings import heap_fault
from .seal import SealedFile

_trees: dict[int, h5py.File] = {}
"""The trees that are open, by their id(): to hash a tree, HDF5 reads the file, which may be damaged."""


@contextmanager
def open_tree(file: io.RawIOBase, *, write: bool = False) -> Iterator[h5py.File]:
    """The tree in `file`: an existing one, or with `write` a new one."""
    access = h5py.h5p.create(h5py.h5p.FILE_ACCESS)
    try:
        access.set_fclose_degree(h5py.h5f.CLOSE_STRONG)
        # The oldest layout: every HDF5 reader knows it, it holds no times, and it does not change with the library's version.
        access.set_libver_bounds(h5py.h5f.LIBVER_EARLIEST, h5py.h5f.LIBVER_V18 if write else h5py.h5f.LIBVER_LATEST)
        access.set_fileobj_driver(h5py.h5fd.fileobj_driver, file)
        name = repr(file).encode("ascii", "replace")
        tree = h5py.File(h5py.h5f.create(name, fapl=access) if write else h5py.h5f.open(name, h5py.h5f.ACC_RDONLY, fapl=access))
    finally:
        access.close()  # else it lives as long as any traceback, and HDF5 calls into a finished Python to free it
    _trees[id(tree)] = tree
    try:
        yield tree
    finally:
        _trees.pop(id(tree), None)
        with nullcontext() if write else suppress(RuntimeError):  # a file that is read has nothing to lose
            tree.close()


@atexit.register
def _close_all() -> None:
    """A tree still open when Python ends would crash it, for the same reason."""
    while _trees:
        _trees.popitem()[1].close()


class CheckedFile(SealedFile):
    """What HDF5 does not look at itself, in files that have no seal: the count of bytes read, and string heaps that would hang it."""

    def readinto(self, buffer: Any, /) -> int:
        """Fill the buffer with checked bytes."""
        start = self.tell()
        count = super().readinto(buffer)
        if count < memoryview(buffer).nbytes:
            raise self.damaged("it ends before the data that it announces")
        if bytes(memoryview(buffer).cast("B")[:4]) == b"GCOL" and (fault := heap_fault(self, start)) is not None:
            raise self.damaged(f"it {fault}")
        return count


class Sink(io.RawIOBase):
    """Where HDF5 writes. A failed write is kept as `error` and not passed on, so that HDF5 can always close the tree."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__()
        self._file = file
        self.error: OSError | None = None

    def write(self, data: Any, /) -> int:
        """Write, or remember why not."""
        try:
            if self.error is None:
                self._file.write(data)
        except OSError as error:
            self.error = error
        return memoryview(data).nbytes

    def readinto(self, buffer: Any, /) -> int:
        """Read back what was written."""
        return self._file.readinto(buffer)  # type: ignore[attr-defined]

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Move to a place. (A buffered file writes what it holds before it moves, so this can fail as a write does.)"""
        try:
            return self._file.seek(offset, whence)
        except OSError as error:
            self.error = self.error or error
            return offset

    def tell(self) -> int:
        """The place of the next byte."""
        return self._file.tell()

    def truncate(self, size: int | None = None, /) -> int:
        """Cut or lengthen the file."""
        try:
            return self._file.truncate(size)
        except OSError as error:
            self.error = self.error or error
            return size or 0

    def flush(self) -> None:
        """Nothing: the whole file is forced to the disk at the end."""
