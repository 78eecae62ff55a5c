"""The safetensors container: read tensor by tensor, written byte for byte as the reference writes it, and as a store.

`open_safetensors` and `write_safetensors` take any names and know bfloat16; `SafetensorsStore` keeps to what every store carries.
"""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ..errors import ConfigError, DtypeError, FormatError, StateError, StoreError, faults
from .atomic import atomic_file
from .bfloat16 import to_bits, to_float32
from .lazy import info
from .names import array_faults, name_faults, text_fault
from .safetensors_header import DTYPE_OF, LIMIT, METADATA, NUMPY, Entry, build_header, is_text, parse_header
from .store import Reader, StoreBase, check_known, open_binary

SHARED = 1 << 24
"""Bytes of the longest header that is kept for who reads the same next."""

_shared_header = lru_cache(maxsize=2)(parse_header)  # each format looks into a file to recognise it; by its bytes, so never an old one


class SafetensorsReader:
    """An open safetensors file: the header is checked, the bytes of a tensor are read when it is asked for."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file, self._path = file, path
        self._map: mmap.mmap | None = None
        size = file.seek(0, os.SEEK_END)
        self._start, text = _read_header(file, size, path)
        metadata, self._entries = (_shared_header if len(text) <= SHARED else parse_header)(text, size - self._start, path)
        self.metadata = dict(metadata)

    def names(self) -> list[str]:
        """The name of every tensor, in the order they lie in."""
        return list(self._entries)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor."""
        return self._entry(name).shape

    def dtype(self, name: str) -> str:
        """The dtype of a tensor as the file calls it, such as "BF16" or "F32"."""
        return self._entry(name).dtype

    def array(self, name: str) -> np.ndarray:
        """A tensor, loaded now and C-contiguous; BF16 as float32. Raises FormatError for a dtype that NumPy lacks, such as F8_E4M3."""
        entry = self._entry(name)
        array = np.empty(entry.shape, self._dtype(name, stored=True))
        self._fill(array, entry, name)
        if entry.dtype == "BF16":
            return to_float32(array)
        if entry.dtype == "BOOL" and (array.view(np.uint8) > 1).any():
            raise FormatError(f"'{self._path}': tensor {name!r} is BOOL, but holds bytes other than 0 and 1; get a new copy")
        return array.astype(array.dtype.newbyteorder("="), copy=False)

    def view(self, name: str) -> np.ndarray:
        """A tensor as a read-only view on a memory map of the file: no copy, and each page is read when it is first used.

        What no view can show is loaded instead, as by `array`: BF16 (as float32), BOOL, and tensors that do not lie on a multiple of their
        item size. A view outlives the reader and keeps the map open. As with every memory map, the process ends if another
        program shortens the file while views are used; loratk's own writes replace a file and leave views as they are.
        """
        entry, dtype = self._entry(name), self._dtype(name, stored=True)
        begin = self._start + entry.begin
        if entry.dtype in ("BF16", "BOOL") or not dtype.isnative or begin % dtype.itemsize or entry.begin == entry.end:
            array = self.array(name)
            array.flags.writeable = False
            return array
        self._check_open()
        if os.fstat(self._file.fileno()).st_size < self._start + entry.end:
            raise self._cut(name)
        if self._map is None:
            try:
                self._map = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
            except OSError as error:
                raise StoreError(f"cannot map '{self._path}': {error.strerror or error}") from error
        return np.frombuffer(self._map, dtype, math.prod(entry.shape), begin).reshape(entry.shape)

    def place(self, name: str) -> tuple[int, int, int]:
        """Where the bytes of a tensor lie: the descriptor of the open file, their first place in it, and the one after their last."""
        self._check_open()
        entry = self._entry(name)
        return self._file.fileno(), self._start + entry.begin, self._start + entry.end

    def close(self) -> None:
        """Let go of the map, which lives on in views."""
        self._map = None

    def numpy_dtype(self, name: str) -> np.dtype:
        """The dtype that `array` gives. Raises FormatError as it does."""
        return self._dtype(name, stored=False)

    def _dtype(self, name: str, *, stored: bool) -> np.dtype:
        dtype = self._entry(name).dtype
        if dtype == "BF16":
            return np.dtype("<u2" if stored else "f4")
        if dtype not in NUMPY:
            raise FormatError(
                f"'{self._path}': tensor {name!r} is stored as {dtype}, which loratk does not read; it reads BF16, {', '.join(NUMPY)}. "
                "Convert it to one of these first"
            )
        return NUMPY[dtype] if stored else NUMPY[dtype].newbyteorder("=")

    def _entry(self, name: str) -> Entry:
        check_known([name], self._entries)
        return self._entries[name]

    def _fill(self, array: np.ndarray, entry: Entry, name: str) -> None:
        self._check_open()
        raw, done = array.reshape(-1).view(np.uint8).data, 0
        try:
            self._file.seek(self._start + entry.begin)
            while done < len(raw) and (count := self._file.readinto(raw[done:])):  # type: ignore[attr-defined]
                done += count
        except OSError as error:
            raise StoreError(f"cannot read '{self._path}': {error.strerror or error}") from error
        if done < len(raw):
            raise self._cut(name)

    def _check_open(self) -> None:
        if self._file.closed:
            raise StateError(f"'{self._path}' is closed; read inside the 'with' block of open()")

    def _cut(self, name: str) -> FormatError:
        return FormatError(f"'{self._path}' ends within tensor {name!r}: it was cut short while it was open")


def _read_header(file: BinaryIO, size: int, path: Path) -> tuple[int, bytes]:
    """Where the header ends, and the header. Raises FormatError for what is no safetensors file at all."""
    file.seek(0)
    head = file.read(8)
    length = int.from_bytes(head, "little")
    if len(head) < 8 or length > LIMIT or 8 + length > size:
        said = f"a header of {length} bytes (at most {LIMIT})" if len(head) == 8 else "nothing"
        raise FormatError(f"'{path}' is no safetensors file, or was cut short: it has {size} bytes and announces {said}")
    text = file.read(length)
    if not text.startswith(b"{"):
        raise FormatError(f"'{path}' is no safetensors file: its header must start with '{{', found {text[:8]!r}")
    return 8 + length, text


@contextmanager
def open_safetensors(path: str | Path, file: BinaryIO | None = None) -> Iterator[SafetensorsReader]:
    """A safetensors file for reading, or one that is open and stays so, which messages call `path`.

    Raises StoreError where it cannot be opened, FormatError with every fault of its header.
    """
    path = Path(path)
    with nullcontext(file) if file is not None else open_binary(path) as opened, closing(SafetensorsReader(opened, path)) as reader:
        yield reader


def write_safetensors(
    path: str | Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str], bfloat16: Collection[str] = frozenset()
) -> None:
    """Write a file, atomically. Of `arrays`, those named in `bfloat16` are rounded to it.

    Raises ConfigError for names and metadata that are no text, DtypeError for dtypes the format or bfloat16 lacks; with every fault.
    """
    found = list(_text_faults(arrays, metadata))
    found += [f"there is no array {name!r} to write as bfloat16" for name in bfloat16 if name not in arrays]
    if found:
        raise ConfigError(faults(f"nothing was written to '{path}':", found))
    found = list(array_faults(arrays))
    for name in () if found else sorted(bfloat16):
        if (dtype := info(arrays, name)[1]).newbyteorder("=") not in (np.float16, np.float32):
            found.append(f"{name!r} has the dtype {dtype}; bfloat16 is made of float16 or float32")
    if found:
        raise DtypeError(faults(f"nothing was written to '{path}'; convert these arrays first:", found))
    with atomic_file(Path(path)) as file:
        _save(file, arrays, metadata, bfloat16)


def _text_faults(arrays: Iterable[str], metadata: Mapping[str, str]) -> Iterator[str]:
    yield from (f"array {name!r}: its name is no text that UTF-8 can hold" for name in arrays if not is_text(name))
    for key, value in metadata.items():
        if not is_text(key) or not is_text(value):
            yield f"metadata {key!r} must be text that UTF-8 can hold, found {value!r}"


def _save(file: BinaryIO, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str], bfloat16: Collection[str]) -> None:
    layout = {}
    for name in arrays:
        shape, dtype = info(arrays, name)
        layout[name] = ("BF16" if name in bfloat16 else DTYPE_OF[dtype.newbyteorder("=")]), shape
    if METADATA in layout:
        raise ConfigError(f"{METADATA!r} cannot be the name of an array in safetensors; rename it")
    header, entries = build_header(layout, metadata)
    if len(header) - 8 > LIMIT:
        raise ConfigError(
            f"the names of {len(layout)} arrays and the metadata make a header of {len(header)} bytes, above {LIMIT}; use fewer"
        )
    file.write(header)
    for name, entry in entries.items():
        array = arrays[name]
        array = to_bits(array) if entry.dtype == "BF16" else array
        array = np.asarray(array, array.dtype.newbyteorder("<"), order="C")
        file.write(array.reshape(-1).view(np.uint8).data)


class _StoreReader:
    """A safetensors file as what every store's reader is."""

    def __init__(self, reader: SafetensorsReader, path: Path) -> None:
        self._reader, self.strings = reader, reader.metadata
        self.bfloat16 = frozenset(name for name in reader.names() if reader.dtype(name) == "BF16")
        found = list(name_faults(reader.names(), self.strings))
        found += [f"string {key!r} {fault}" for key, value in self.strings.items() if (fault := text_fault(value)) is not None]
        if found:
            raise FormatError(faults(f"'{path}' has names or strings that no store can keep:", found))

    def names(self) -> list[str]:
        """The name of every array."""
        return self._reader.names()

    def info(self, name: str) -> tuple[tuple[int, ...], np.dtype]:
        """The shape and dtype of an array, without loading it."""
        return self._reader.shape(name), self._reader.numpy_dtype(name)

    def array(self, name: str) -> np.ndarray:
        """One array, loaded now; BF16 as float32."""
        return self._reader.array(name)

    def view(self, name: str) -> np.ndarray:
        """One array, read-only and where possible not copied, as `SafetensorsReader.view`."""
        return self._reader.view(name)

    def place(self, name: str) -> tuple[int, int, int]:
        """Where the bytes of an array lie, as `SafetensorsReader.place`."""
        return self._reader.place(name)

    def verify(self) -> None:
        """Nothing: the header was checked on opening, and the format has no checksums."""


class SafetensorsStore(StoreBase):
    """Arrays as tensors, strings as metadata; equal contents give equal bytes. No checksums: a flipped bit in a tensor is not noticed."""

    name = "safetensors"
    suffixes = (".safetensors",)

    def sniff(self, path: Path) -> bool:
        """Whether it begins with the length of a header that fits in the file, and "{"."""
        with open_binary(path) as file:
            head = file.read(9)
            length = int.from_bytes(head[:8], "little")
            return head[8:] == b"{" and length <= LIMIT and 8 + length <= file.seek(0, os.SEEK_END)

    @contextmanager
    def open(self, path: Path) -> Iterator[Reader]:
        """The file for lazy reading."""
        with open_safetensors(path) as reader:
            yield _StoreReader(reader, path)

    def save(self, file: BinaryIO, arrays: Mapping[str, np.ndarray], strings: Mapping[str, str]) -> None:
        """Write everything."""
        _save(file, arrays, strings, ())
