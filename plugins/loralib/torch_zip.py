"""A file of torch.save: a zip archive of one pickle and the numbers of each tensor. Read with bounds on everything, run never."""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np

from loratk.errors import FormatError, LoratkError, faults
from loratk.io.bfloat16 import to_float32
from loratk.io.store import open_binary

from .tensor_pickle import Tensor, read_pickle

LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""First bytes of what torch.save wrote before version 1.6: its magic number, pickled."""
LIMIT = 4 << 20
"""Bytes of the longest pickle that is read: that of some 20,000 tensors."""
MAX_AXES, SHARING = 32, 16
"""Tensors may share storages, but are together at most SHARING times as long as the file."""


class TorchArchive:
    """An open file: the tensors are known and checked against the archive's entries, their numbers are read when asked for."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._path, self._size = path, file.seek(0, os.SEEK_END)
        file.seek(0)
        head = file.read(len(LEGACY))
        if not head.startswith(b"PK\3\4"):
            raise FormatError(f"'{path}' is no file of torch.save in its zip layout: it {_seems(head)}")
        self._zip = zipfile.ZipFile(file)
        entries, self._root = self._entries()
        self._storages = {
            name.removeprefix(f"{self._root}/data/"): entry for name, entry in entries.items() if name.startswith(f"{self._root}/data/")
        }
        self._order = self._byte_order(entries)
        try:
            value = read_pickle(self._pickle(entries))
        except FormatError as error:
            raise FormatError(f"'{path}', '{self._root}/data.pkl': {error}") from error
        self.wrapper, self.tensors = self._state_dict(value)
        if found := list(self._faults()):
            raise FormatError(faults(f"'{path}' is not a sound file of torch.save; get a new copy of it:", found))

    def arrays(self, names: Collection[str]) -> dict[str, np.ndarray]:
        """The tensors of these names, C-contiguous copies; bfloat16 as float32. Each storage is read once."""
        found: dict[str, np.ndarray] = {}
        held: tuple[str, np.ndarray] | None = None
        for name in sorted(names, key=lambda name: self.tensors[name].storage.key):
            tensor = self.tensors[name]
            if held is None or held[0] != tensor.storage.key:
                with _guard(self._path):
                    held = tensor.storage.key, np.frombuffer(self._zip.read(self._storages[tensor.storage.key]), np.uint8)
            found[name] = self._view(held[1], tensor)
        return found

    def _view(self, raw: np.ndarray, tensor: Tensor) -> np.ndarray:
        dtype = np.dtype("uint16" if tensor.storage.dtype == "bfloat16" else tensor.storage.dtype).newbyteorder(self._order)
        strides = [stride * dtype.itemsize for stride in tensor.strides]
        if not math.prod(tensor.shape):
            view = np.empty(tensor.shape, dtype)
        else:  # checked in _faults: no index leaves the storage
            view = np.ndarray(tensor.shape, dtype, raw.data, tensor.offset * dtype.itemsize, strides)
        array = np.array(view, dtype.newbyteorder("="), order="C")
        return to_float32(array) if tensor.storage.dtype == "bfloat16" else array

    def _entries(self) -> tuple[dict[str, zipfile.ZipInfo], str]:
        """The archive's entries by name, and the folder that all of them are in. Nothing is unpacked to the disk, so names are harmless."""
        entries: dict[str, zipfile.ZipInfo] = {}
        found = []
        for entry in self._zip.infolist():
            if entry.orig_filename in entries:
                found.append(f"it has two entries {entry.orig_filename!r}")
            if entry.flag_bits & 1 or entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
                found.append(f"entry {entry.orig_filename!r} is compressed or encrypted, which torch.save never does")
            entries[entry.orig_filename] = entry
        pickles = [name for name in entries if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(pickles) != 1:
            found.append(f"it needs one '<folder>/data.pkl', found {len(pickles)}; it may be a .keras or an .npz file")
        if sum(entry.file_size for entry in entries.values()) > self._size:
            found.append(f"its entries are longer than its {self._size} bytes: they overlap")
        if found:
            raise FormatError(faults(f"'{self._path}' is not a sound file of torch.save; get a new copy of it:", found[:20]))
        return entries, pickles[0].removesuffix("/data.pkl")

    def _byte_order(self, entries: Mapping[str, zipfile.ZipInfo]) -> str:
        entry = entries.get(f"{self._root}/byteorder")
        said = self._zip.read(entry) if entry is not None and entry.file_size < 16 else b"little" if entry is None else b"?"
        if said not in (b"little", b"big"):
            raise FormatError(f"'{self._path}' says that its byte order is {said!r}; it must be 'little' or 'big'")
        return "<" if said == b"little" else ">"

    def _pickle(self, entries: Mapping[str, zipfile.ZipInfo]) -> bytes:
        entry = entries[f"{self._root}/data.pkl"]
        if entry.file_size > LIMIT:
            raise FormatError(f"it is {entry.file_size} bytes long, above the {LIMIT} of a pickle that is only a list of tensors")
        return self._zip.read(entry)

    def _state_dict(self, value: object) -> tuple[str, dict[str, Tensor]]:
        """The dict of tensors: the value, or the one dict of tensors in it, and its key then."""
        if not isinstance(value, dict):
            raise FormatError(f"'{self._path}' must hold a dict of tensors, found a {type(value).__name__}; save a state_dict")
        candidates = {"": value} | {str(key): held for key, held in value.items() if isinstance(held, dict) and held}
        sound = {key: held for key, held in candidates.items() if held and all(_is_entry(*item) for item in held.items())}
        if len(sound) != 1:
            parts = ", ".join(f"{key!r} ({type(held).__name__})" for key, held in list(value.items())[:8])
            said = f"found {len(sound)} in {parts or 'nothing'}"
            raise FormatError(f"'{self._path}' must hold one dict of tensors, {said}; save a state_dict")
        return next(iter(sound.items()))

    def _faults(self) -> Iterator[str]:
        total = 0
        for name, tensor in self.tensors.items():
            held, entry = tensor.storage, self._storages.get(tensor.storage.key)
            size = 2 if held.dtype == "bfloat16" else np.dtype(held.dtype).itemsize
            count = math.prod(tensor.shape)
            where = f"tensor {name[:200]!r}"
            total += count * size
            if entry is None:
                yield f"{where}: the archive has no entry '{self._root}/data/{held.key[:80]}'"
            elif held.length * size != entry.file_size:
                yield f"{where}: its storage must have {held.length} numbers of {held.dtype}, but has {entry.file_size} bytes"
            elif not _is_shape(tensor) or count > held.length:
                yield f"{where}: the shape {_cut(tensor.shape)} is not part of a storage of {held.length}"
            elif count and _last(tensor) >= held.length:
                yield f"{where}: offset {tensor.offset} and strides {_cut(tensor.strides)} lead out of a storage of {held.length}"
        if total > SHARING * self._size:
            yield f"its tensors have {total} bytes together, more than {SHARING} times the file's {self._size}"


@contextmanager
def open_torch(path: Path) -> Iterator[TorchArchive]:
    """A file of torch.save for reading. Raises StoreError where it cannot be opened, FormatError where it is no such file or not sound."""
    with open_binary(path) as file:
        with _guard(path):
            archive = TorchArchive(file, path)
        yield archive


@contextmanager
def _guard(path: Path) -> Iterator[None]:
    """Turn whatever zipfile raises over a broken archive into a FormatError."""
    try:
        yield
    except LoratkError:
        raise
    except Exception as error:
        raise FormatError(f"cannot read '{path}' as a file of torch.save: {error}. It is damaged or cut short; get a new copy") from error


def _is_entry(key: object, value: object) -> bool:
    return isinstance(key, str) and isinstance(value, Tensor)


def _is_shape(tensor: Tensor) -> bool:
    """Whether NumPy can have the shape, empty axes left aside."""
    fits = len(tensor.shape) <= MAX_AXES and min((tensor.offset, *tensor.shape, *tensor.strides)) >= 0
    return fits and math.prod(size for size in tensor.shape if size) < 1 << 48


def _last(tensor: Tensor) -> int:
    """The place of its last number in the storage."""
    return tensor.offset + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.strides, strict=True))


def _cut(sizes: tuple[int, ...]) -> str:
    return str(sizes[:8]) if len(sizes) <= 8 else f"{sizes[:8]} and {len(sizes) - 8} more"


def _seems(head: bytes) -> str:
    if head == LEGACY:
        return "is of the layout before torch 1.6, a bare pickle, which loratk never reads; load and save it with a newer torch"
    if head[:1] == b"\x80":
        return "is a bare pickle, which loratk never reads; keep tensors with torch.save or, better, safetensors"
    return f"begins with {head[:8]!r}"
