"""A GGUF file of floating-point tensors: read tensor by tensor, written byte for byte as gguf-py writes it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np

from loratk.errors import FormatError, StoreError
from loratk.io import atomic_file
from loratk.io.bfloat16 import to_bits, to_float32
from loratk.io.store import check_known, open_binary

from .header import Entry, Header, build_header, padded, parse_header
from .q8_0 import dequantize, quantize
from .values import Cursor, Value

PEEK = 64
"""Values that are looked at to tell what a file is."""


class GgufReader:
    """An open file: the header is checked, the bytes of a tensor are read when it is asked for."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file, self._path = file, path
        size = file.seek(0, os.SEEK_END)
        self._header: Header = parse_header(Cursor(file, size), size, path)

    @property
    def fields(self) -> dict[str, Value]:
        """The metadata."""
        return self._header.fields

    @property
    def entries(self) -> dict[str, Entry]:
        """Type and shape of each tensor by name, in the order they lie in."""
        return self._header.entries

    def array(self, name: str) -> np.ndarray:
        """A tensor, loaded now and C-contiguous: float16 as it is, all other types as float32."""
        check_known([name], self.entries)
        entry = self.entries[name]
        raw = self._bytes(entry, name)
        if entry.type == "Q8_0":
            return dequantize(raw).reshape(entry.shape)
        array = raw.view({"F32": "<f4", "F16": "<f2", "BF16": "<u2"}[entry.type]).reshape(entry.shape)
        return to_float32(array) if entry.type == "BF16" else array.astype(array.dtype.newbyteorder("="), copy=False)

    def _bytes(self, entry: Entry, name: str) -> np.ndarray:
        raw, done = np.empty(entry.size, np.uint8), 0
        try:
            self._file.seek(self._header.start + entry.offset)
            while done < len(raw) and (count := self._file.readinto(raw[done:].data)):  # type: ignore[attr-defined]
                done += count
        except OSError as error:
            raise StoreError(f"cannot read '{self._path}': {error.strerror or error}") from error
        if done < len(raw):
            raise FormatError(f"'{self._path}' ends within tensor {name!r}: it was cut short while it was open")
        return raw


@contextmanager
def open_gguf(path: Path) -> Iterator[GgufReader]:
    """A file for reading. Raises StoreError where it cannot be opened, FormatError with every fault of its header."""
    with open_binary(path) as file:
        yield GgufReader(file, path)


def peek(path: Path) -> dict[str, str] | None:
    """The strings among the first values of a GGUF file, as far as they can be read; None for another file."""
    found: dict[str, str] = {}
    with open_binary(path) as file:
        cursor = Cursor(file, file.seek(0, os.SEEK_END))
        try:
            if cursor.take(4, "mark") != b"GGUF":
                return None
            cursor.take(12, "counts")
            for _ in range(min(cursor.number("u64", "values"), PEEK)):
                key, value = cursor.text("key"), cursor.value("value")
                if value.kind == "string":
                    found[key] = value.value
        except FormatError:
            return found if cursor.at >= 4 else None
    return found


def write_gguf(path: Path, fields: Mapping[str, Value], tensors: Mapping[str, tuple[str, np.ndarray]]) -> None:
    """Write a file, atomically: metadata and tensors, each with the type to store it as, in their order. Q8_0 quantises."""
    header, entries = build_header(fields, {name: (type, array.shape) for name, (type, array) in tensors.items()})
    with atomic_file(path) as file:
        file.write(header)
        for name, (type, array) in tensors.items():
            file.write(_encoded(type, array).data)
            file.write(bytes(padded(entries[name].size) - entries[name].size))


def _encoded(type: str, array: np.ndarray) -> np.ndarray:
    """The bytes of an array as a type: any shape -> (bytes,) uint8."""
    if type == "Q8_0":
        return quantize(array)
    stored = to_bits(array).astype("<u2") if type == "BF16" else np.asarray(array, "<f4" if type == "F32" else "<f2")
    return np.ascontiguousarray(stored).reshape(-1).view(np.uint8)
