"""The HDF5 store. Its layout is public: docs/format.md. h5py is imported on first use."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np

from .seal import append_seal
from .store import Reader, StoreBase

SEAL_MARK = "__loratk_seal__"
_ADVICE = (
    f"If it was edited on purpose, delete the attribute {SEAL_MARK!r} of the root group; it is then read without these checksums "
    f"(h5py: with h5py.File(path, 'r+') as file: del file.attrs[{SEAL_MARK!r}])."
)


class Hdf5Store(StoreBase):
    """Arrays as datasets, strings as attributes, sealed at the end; equal contents give equal bytes."""

    name = "hdf5"
    suffixes = (".h5", ".hdf5")
    magic = b"\x89HDF\r\n\x1a\n"

    def save(self, file: BinaryIO, arrays: Mapping[str, np.ndarray], strings: Mapping[str, str]) -> None:
        """Write everything in sorted order, then the seal."""
        from .hdf5_file import Sink, open_tree

        sink = Sink(file)
        with open_tree(sink, write=True) as tree:
            tree.attrs[SEAL_MARK] = "1"
            for name in sorted(arrays):
                array = arrays[name]
                tree.create_dataset(name, data=array.astype(array.dtype.newbyteorder("<"), copy=False), track_times=False)
            for name in sorted(strings):
                group, _, key = name.rpartition("/")
                (tree.require_group(group) if group else tree).attrs[key] = strings[name]
        if sink.error is not None:
            raise sink.error
        append_seal(file)

    @contextmanager
    def open(self, path: Path) -> Iterator[Reader]:
        """The file for lazy reading: its structure is checked now, the bytes of an array when it is read."""
        from .hdf5_file import CheckedFile, open_tree
        from .hdf5_reader import Hdf5Reader

        with ExitStack() as stack:
            file = stack.enter_context(CheckedFile(path, _ADVICE))
            with file.guard(self.name):
                tree = stack.enter_context(open_tree(file))
                if SEAL_MARK in tree.attrs:
                    file.require_seal()
                reader = Hdf5Reader(tree, file)
            yield reader
