"""Strings of variable length in an HDF5 file, looked at by Python before HDF5 reads them.

HDF5 2.0 takes and clears as many bytes as the descriptor of a string says, up to 4 GiB, before it looks for the string; and it walks a heap
of strings for ever where an object in it has no size. Sections are those of the HDF5 file format specification, version 3.0.
"""

from __future__ import annotations

import struct

from .hdf5_headers import element_size, piece
from .seal import SealedFile

HEAD = 16
LIMIT = 256 << 20
"""Bytes of the largest heap of strings that is read."""
DESCRIPTOR = struct.Struct("<IQI")  # III.E: length of the string, place of its heap, number of the object in it


def in_attribute(file: SealedFile, body: bytes) -> tuple[int, bytes] | None:
    """Size of an element and descriptor of a string in the body of an attribute message (IV.A.2.m), or None where its type is another."""
    if len(body) < 8:
        return None
    version, flags, name, kind, space = struct.unpack_from("<BBHHH", body)
    name, kind, space = (-(-size // 8) * 8 if version == 1 else size for size in (name, kind, space))
    at = 8 + (version == 3) + name
    size = element_size(file, body[at : at + kind], version > 1 and bool(flags & 1))
    at += kind + space
    return None if size is None else (size, body[at : at + DESCRIPTOR.size])


def heap_fault(file: SealedFile, place: int) -> str | None:
    """What is wrong with the heap of strings at a place (III.E): its size, or objects over which a walk would not come to its end."""
    head = piece(file, place, HEAD)
    size = int.from_bytes(head[8:], "little")
    if head[:4] != b"GCOL" or not HEAD <= size <= min(LIMIT, file.size - place):
        return f"has strings in a heap at byte {place}, where there is none, or one of {size} bytes"
    heap, at = piece(file, place, size), HEAD
    while at + 16 <= size:
        index, length = struct.unpack_from("<H6xQ", heap, at)
        step = -(-(16 + length) // 8) * 8 if index else length  # the free space, index 0, counts its own header
        if not 16 <= step < 1 << 63 or step % 8:
            return f"has strings in the heap at byte {place}, which is damaged"
        at += step
    return None
