"""The header of a GGUF file: its metadata and where each tensor lies, with every check of ggml's reader and some more.

    file   = "GGUF" | version (u32) | tensors (u64) | values (u64) | values | tensors | padding | data
    value  = key | type (u32) | value            tensor = name | axes (u32) | sizes (u64, the fastest first) | type (u32) | offset (u64)

Offsets count from the start of the data. Tensors lie there in their order, each from a multiple of the alignment (32) on, without a hole.
Source: ggml, docs/gguf.md and src/gguf.cpp.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from loratk.errors import FormatError, faults

from .values import Cursor, Value, pack_text, pack_value

MAGIC = b"GGUF"
ALIGNMENT = 32
MAX_NAME = 63
"""Bytes of the longest name of a tensor that ggml keeps."""
MAX_AXES = 4
MAX_ENTRIES = 1 << 16
"""Values or tensors of the largest adapter that is read."""

_CODES = {"F32": 0, "F16": 1, "Q8_0": 8, "BF16": 30}
_TYPES = {code: name for name, code in _CODES.items()}
_BLOCKS = {"F32": (1, 4), "F16": (1, 2), "Q8_0": (32, 34), "BF16": (1, 2)}  # numbers and bytes of a block


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies: its type, its shape as NumPy counts axes (the fastest last), and its first byte, from the start of the data."""

    type: str
    shape: tuple[int, ...]
    offset: int

    @property
    def size(self) -> int:
        """Its bytes."""
        numbers, size = _BLOCKS[self.type]
        return math.prod(self.shape) // numbers * size


@dataclass(frozen=True)
class Header:
    """Metadata and tensors by name, in their order, and the byte that the data starts at."""

    fields: dict[str, Value]
    entries: dict[str, Entry]
    start: int


def fits_blocks(type: str, shape: tuple[int, ...]) -> bool:
    """Whether rows of a shape are whole blocks of a type."""
    return shape[-1] % _BLOCKS[type][0] == 0 if shape else _BLOCKS[type][0] == 1


def padded(size: int, alignment: int = ALIGNMENT) -> int:
    """A size filled up to a multiple of the alignment."""
    return -(-size // alignment) * alignment


def build_header(fields: Mapping[str, Value], tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> tuple[bytes, dict[str, Entry]]:
    """The header up to the data, padding included, and where each tensor (type, shape) goes. Byte for byte as gguf-py writes it."""
    parts = [MAGIC, struct.pack("<IQQ", 3, len(tensors), len(fields))]
    parts += [pack_text(key) + pack_value(value) for key, value in fields.items()]
    entries: dict[str, Entry] = {}
    offset = 0
    for name, (type, shape) in tensors.items():
        entries[name] = Entry(type, shape, offset)
        sizes = struct.pack(f"<I{len(shape)}Q", len(shape), *shape[::-1])
        parts.append(pack_text(name) + sizes + struct.pack("<IQ", _CODES[type], offset))
        offset += padded(entries[name].size)
    raw = b"".join(parts)
    return raw + bytes(padded(len(raw)) - len(raw)), entries


def parse_header(cursor: Cursor, size: int, path: object) -> Header:
    """The header of a file of that size. Raises FormatError with every fault up to where it can be read no further."""
    found: list[str] = []
    fields: dict[str, Value] = {}
    entries: dict[str, Entry] = {}
    start = 0
    try:
        tensors, values = _counts(cursor)
        _read_fields(cursor, values, fields, found)
        alignment = _alignment(fields, found)
        _read_entries(cursor, tensors, entries, found)
        start = padded(cursor.at, alignment)
        if not found:
            found += _layout_faults(entries, size - start, alignment)
    except FormatError as error:
        found.append(str(error))
    if found:
        raise FormatError(faults(f"'{path}' is not a sound GGUF file; get a new copy of it:", found))
    return Header(fields, entries, start)


def _counts(cursor: Cursor) -> tuple[int, int]:
    """How many tensors and values there are."""
    if cursor.take(4, "the mark 'GGUF'") != MAGIC:
        raise FormatError("it does not begin with 'GGUF'")
    version = cursor.number("u32", "the version")
    if version not in (2, 3):
        big = struct.unpack(">I", struct.pack("<I", version))[0]
        hint = "; it was written for big-endian machines" if big in (2, 3) else ""
        raise FormatError(f"its version is {version}, and loratk reads 2 and 3 in little-endian order{hint}")
    counts = [cursor.number("u64", f"the number of {what}") for what in ("tensors", "values")]
    for what, count, least in zip(("tensors", "values"), counts, (24, 13), strict=True):
        if count > MAX_ENTRIES or count * least > cursor.left:
            raise FormatError(f"it announces {count} {what}; {cursor.left} bytes follow, and no adapter has more than {MAX_ENTRIES}")
    return counts[0], counts[1]


def _read_fields(cursor: Cursor, count: int, fields: dict[str, Value], found: list[str]) -> None:
    for place in range(count):
        key = cursor.text(f"key {place}")
        if not key or not key.isprintable():
            found.append(f"key {_shown(key)} is empty or has characters that no key has")
        if key in fields:
            found.append(f"the key {_shown(key)} is given twice")
        fields[key] = cursor.value(f"the value of {_shown(key)}")


def _alignment(fields: Mapping[str, Value], found: list[str]) -> int:
    value = fields.get("general.alignment", Value("u32", ALIGNMENT))
    if value.kind != "u32" or value.value < 1 or value.value & (value.value - 1):
        found.append(f"general.alignment must be a u32 and a power of 2, found {value.kind} {_shown(value.value)}")
        return ALIGNMENT
    return int(value.value)


def _read_entries(cursor: Cursor, count: int, entries: dict[str, Entry], found: list[str]) -> None:
    for place in range(count):
        name = cursor.text(f"the name of tensor {place}")
        where = f"tensor {_shown(name)}"
        if not name or not name.isprintable() or len(name.encode()) > MAX_NAME:
            found.append(f"{where} must have a printable name of 1 to {MAX_NAME} bytes")
        if name in entries:
            found.append(f"{where} is given twice")
        axes = cursor.number("u32", f"the number of axes of {where}")
        if axes > MAX_AXES:
            raise FormatError(f"{where} has {axes} axes, and GGUF at most {MAX_AXES}")
        shape = tuple(cursor.number("u64", f"a size of {where}") for _ in range(axes))[::-1]
        code, offset = cursor.number("u32", f"the type of {where}"), cursor.number("u64", f"the offset of {where}")
        if code not in _TYPES:
            found.append(f"{where} is of ggml's type {code}, which loratk does not read; it reads {', '.join(_CODES)}")
        elif not fits_blocks(_TYPES[code], shape):
            found.append(f"{where} of type {_TYPES[code]} and shape {shape} has rows that are no multiple of {_BLOCKS[_TYPES[code]][0]}")
        else:
            entries[name] = Entry(_TYPES[code], shape, offset)


def _layout_faults(entries: Mapping[str, Entry], room: int, alignment: int) -> Iterator[str]:
    """Tensors beside the alignment, over each other, with a hole between them or beyond the end of the file."""
    want, end, before = 0, 0, "the header"
    for name, entry in entries.items():
        where = f"tensor {_shown(name)}, at byte {entry.offset} of the data,"
        if entry.offset % alignment:
            yield f"{where} must lie at a multiple of {alignment}"
        if entry.offset != want:
            yield f"{where} {'overlaps' if entry.offset < want else 'leaves a hole after'} {before}; it must lie at {want}"
        if entry.offset + entry.size > room:
            yield f"{where} has {entry.size} bytes, but the data has {max(room, 0)}: the file was cut short"
        end = max(end, entry.offset + entry.size)
        want, before = max(want, padded(end, alignment)), f"tensor {_shown(name)}"
    if room > padded(end, alignment):
        yield f"{room - padded(end, alignment)} bytes follow the last tensor"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
