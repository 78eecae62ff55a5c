"""How long the strings of an HDF5 object claim to be, read before HDF5 takes memory for them.

HDF5 2.0 takes and clears as many bytes as the descriptor of a string says, up to 4 GiB, and only then finds that no such string is there.
Sections and message numbers are those of the HDF5 file format specification, version 3.0.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from .seal import SealedFile

_CONTINUATION, _ATTRIBUTE = 0x10, 0x0C
_VARIABLE_LENGTH = 9  # class of datatype
_MOST_BLOCKS = 1000


def string_lengths(file: SealedFile, address: int) -> Iterator[int]:
    """Of each attribute of variable length in the object header at an address. Attributes kept in a heap of their own are not seen."""
    start = file.tell()
    try:
        for kind, body in _messages(file, address):
            if kind == _ATTRIBUTE and (length := _length(body)) is not None:
                yield length
    finally:
        file.seek(start)


def string_length(file: SealedFile, place: int) -> int:
    """Of the string whose descriptor (III.E) lies at a place."""
    start = file.tell()
    length = int.from_bytes(_bytes(file, place, 4), "little")
    file.seek(start)
    return length


def _messages(file: SealedFile, address: int) -> Iterator[tuple[int, bytes]]:
    """Type and body of the messages of a header (IV.A.1), with those of its continuations."""
    head = _bytes(file, address, 34)
    second = head[:4] == b"OHDR"
    if second:  # IV.A.1.b
        flags = head[5]
        at = 6 + 16 * bool(flags & 0x20) + 4 * bool(flags & 0x10)
        width = 1 << (flags & 3)
        blocks = [(address + at + width, int.from_bytes(head[at : at + width], "little"))]
        step, form = 4 + 2 * bool(flags & 4), "<BH"
    else:  # IV.A.1.a
        blocks = [(address + 16, int.from_bytes(head[8:12], "little"))]
        step, form = 8, "<HH"
    for place, size in blocks:
        block, at = _bytes(file, place, size), 0
        while at + step <= len(block):
            kind, length = struct.unpack_from(form, block, at)
            body = block[at + step : at + step + length]
            at += step + length
            if kind == _CONTINUATION and len(body) >= 16 and len(blocks) < _MOST_BLOCKS:
                place, size = struct.unpack_from("<QQ", body)
                blocks.append((place + 4, size - 8) if second else (place, size))  # without "OCHK" and the checksum
            yield kind, body


def _length(body: bytes) -> int | None:
    """Of the string of an attribute message (IV.A.2.m), or None where its type is another."""
    if len(body) < 8:
        return None
    version, _, name, kind, space = struct.unpack_from("<BBHHH", body)
    at = 8 + (version == 3)
    name, kind, space = (-(-size // 8) * 8 if version == 1 else size for size in (name, kind, space))
    if body[at + name : at + name + 1] and body[at + name] & 15 != _VARIABLE_LENGTH:
        return None
    data = body[at + name + kind + space :][:4]
    return int.from_bytes(data, "little")


def _bytes(file: SealedFile, place: int, size: int) -> bytes:
    """At most so many bytes at a place; none where it is not in the file."""
    if not 0 <= place < file.size or size <= 0:
        return b""
    file.seek(place)
    buffer = bytearray(min(size, file.size - place))
    SealedFile.readinto(file, buffer)
    return bytes(buffer)
