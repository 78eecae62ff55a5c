"""The HDF5 store. Its layout is public: docs/format.md. h5py is imported on first use."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import numpy as np

from ..errors import FormatError
from .seal import append_seal
from .store import COMPRESSION, Option, Reader, StoreBase, compression_level

SEAL_MARK = "__loratk_seal__"
CHUNK = 1 << 20
SMALLEST = 1 << 14  # below, the index of chunks takes more than they save
_ADVICE = (
    f"If it was edited on purpose, delete the attribute {SEAL_MARK!r} of the root group; it is then read without these checksums "
    f"(h5py: with h5py.File(path, 'r+') as file: del file.attrs[{SEAL_MARK!r}])."
)


class Hdf5Store(StoreBase):
    """Arrays as datasets, strings as attributes, sealed at the end; equal contents give equal bytes."""

    name = "hdf5"
    suffixes = (".h5", ".hdf5")
    magic = b"\x89HDF\r\n\x1a\n"
    options: ClassVar[Mapping[str, Option]] = {"compression": COMPRESSION}

    def __init__(self, compression: int | str = 0) -> None:
        self.compression = compression_level(compression)

    def save(
        self, file: BinaryIO, arrays: Mapping[str, np.ndarray], strings: Mapping[str, str], links: Mapping[str, str] | None = None
    ) -> None:
        """Write everything in sorted order, then the seal. `links` are further names of arrays: a hard link to the dataset of each."""
        from .hdf5_file import Sink, open_tree

        sink = Sink(file)
        with open_tree(sink, write=True) as tree:
            tree.attrs[SEAL_MARK] = "1"
            for name in sorted(arrays):
                array = arrays[name]
                packed = _packing(array, self.compression)
                tree.create_dataset(name, data=array.astype(array.dtype.newbyteorder("<"), copy=False), track_times=False, **packed)
            for name in sorted(strings):
                group, _, key = name.rpartition("/")
                (tree.require_group(group) if group else tree).attrs[key] = strings[name]
            for name in sorted(links or {}):
                tree[name] = tree[(links or {})[name]]
        if sink.error is not None:
            raise sink.error
        append_seal(file)

    @contextmanager
    def open(self, path: Path) -> Iterator[Reader]:
        """The file for lazy reading: its structure is checked now, the bytes of an array when it is read."""
        from .hdf5_check import ObjectCheck
        from .hdf5_file import CheckedFile, open_tree
        from .hdf5_reader import Hdf5Reader

        with ExitStack() as stack:
            file = stack.enter_context(CheckedFile(path, _ADVICE))
            with file.guard(self.name):
                check = ObjectCheck(file)
                if (fault := check.root()) is not None:
                    raise FormatError(f"'{path}' holds what a loratk file must not hold (docs/format.md): its root group {fault}")
                tree = stack.enter_context(open_tree(file))
                if SEAL_MARK in tree.attrs:
                    file.require_seal()
                reader = Hdf5Reader(tree, file, check)
            yield reader


def _packing(array: np.ndarray, level: int) -> dict[str, Any]:
    """How a dataset is compressed, if it is: in chunks of at most a mebibyte, each the same share of every axis."""
    if not level or array.nbytes < SMALLEST:
        return {}
    chunks = list(array.shape)
    while math.prod(chunks) * array.itemsize > CHUNK:
        longest = chunks.index(max(chunks))
        chunks[longest] = -(-chunks[longest] // 2)
    return {"chunks": tuple(chunks), "compression": "gzip", "compression_opts": level, "shuffle": True}
