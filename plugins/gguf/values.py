"""The values of GGUF's metadata, to and from bytes; every length is held against what is left of the file before anything is read.

string = length (u64) | UTF-8 bytes          array = type of its items (u32) | their number (u64) | items
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from loratk.errors import FormatError

KINDS = ("u8", "i8", "u16", "i16", "u32", "i32", "f32", "bool", "string", "array", "u64", "i64", "f64")
"""The types of values; the place of each is its number in a file."""
MAX_STRINGS = 1 << 16
"""Strings in all arrays of a file together: a whole vocabulary has more, and no adapter needs one."""

_FORMATS = {
    "u8": "<B", "i8": "<b", "u16": "<H", "i16": "<h", "u32": "<I", "i32": "<i", "f32": "<f", "bool": "<B", "u64": "<Q", "i64": "<q",
    "f64": "<d",
}  # fmt: skip


@dataclass(frozen=True)
class Value:
    """A value and its kind, one of KINDS; of an array also the kind of its `items`. Numbers in an array are a NumPy array."""

    kind: str
    value: Any
    items: str = ""


class Cursor:
    """A place in the header of an open file that moves on with what is read. Raises FormatError where the file has too few bytes."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._size, self.at, self._strings = file, size, 0, 0
        file.seek(0)

    @property
    def left(self) -> int:
        """How many bytes follow."""
        return self._size - self.at

    def take(self, count: int, what: str) -> bytes:
        """The next bytes."""
        if count > self.left:
            raise FormatError(f"{what} needs {count} bytes at byte {self.at}, but only {self.left} follow: it is damaged or cut short")
        raw = self._file.read(count)
        self.at += len(raw)
        if len(raw) < count:
            raise FormatError(f"the file ends within {what}: it was cut short while it was open")
        return raw

    def number(self, kind: str, what: str) -> Any:
        """The next number."""
        layout = _FORMATS[kind]
        return struct.unpack(layout, self.take(struct.calcsize(layout), what))[0]

    def text(self, what: str) -> str:
        """The next string."""
        raw = self.take(self.number("u64", f"the length of {what}"), what)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise FormatError(f"{what} is no UTF-8: {raw[:40]!r}") from None

    def value(self, what: str) -> Value:
        """The next value with its kind before it."""
        kind = self._kind(what)
        if kind == "string":
            return Value(kind, self.text(what))
        if kind == "array":
            return self._array(what)
        number = self.number(kind, what)
        return Value(kind, self._truth(number, what) if kind == "bool" else number)

    def _kind(self, what: str) -> str:
        code = self.number("u32", f"the type of {what}")
        if code >= len(KINDS):
            raise FormatError(f"{what} has the unknown type {code}; GGUF has 0 to {len(KINDS) - 1}")
        return KINDS[code]

    def _truth(self, number: int, what: str) -> bool:
        if number > 1:
            raise FormatError(f"{what} must be 0 or 1 to be a bool, found {number}")
        return bool(number)

    def _array(self, what: str) -> Value:
        items, count = self._kind(f"the items of {what}"), self.number("u64", f"the number of items of {what}")
        if items == "array":
            raise FormatError(f"{what} is an array of arrays, which GGUF does not have")
        size = 8 if items == "string" else struct.calcsize(_FORMATS[items])
        if count * size > self.left:
            raise FormatError(f"{what} announces {count} items, but only {self.left} bytes follow")
        if items != "string":
            numbers = np.frombuffer(self.take(count * size, what), _FORMATS[items])
            if items == "bool":
                self._truth(int(numbers.max(initial=0)), f"an item of {what}")
            return Value("array", numbers, items)
        self._strings += count
        if self._strings > MAX_STRINGS:
            raise FormatError(f"the arrays up to {what} hold {self._strings} strings, and no adapter has more than {MAX_STRINGS}")
        return Value("array", [self.text(f"item {place} of {what}") for place in range(count)], items)


def pack_text(text: str) -> bytes:
    """A string as bytes."""
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def pack_value(value: Value) -> bytes:
    """A value as bytes, its kind before it. Numbers must be in the range of their kind."""
    head = struct.pack("<I", KINDS.index(value.kind))
    if value.kind == "array":
        return head + struct.pack("<IQ", KINDS.index(value.items), len(value.value)) + _pack_items(value.items, value.value)
    return head + (pack_text(value.value) if value.kind == "string" else struct.pack(_FORMATS[value.kind], value.value))


def _pack_items(kind: str, items: Sequence[Any]) -> bytes:
    return b"".join(pack_text(item) if kind == "string" else struct.pack(_FORMATS[kind], item) for item in items)
