"""The object headers of an HDF5 file, read by Python. Sections are those of the HDF5 file format specification, version 3.0."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from .seal import SealedFile

UNDEFINED = (1 << 64) - 1
CONTINUATION, DATATYPE = 0x10, 0x03
VARIABLE_LENGTH, LETTERS = 9, (0, 3)  # classes of datatypes
DESCRIPTOR_SIZE = 16
MOST_BLOCKS = 1000


def piece(file: SealedFile, place: int, size: int) -> bytes:
    """At most so many checked bytes at a place, without a move of the file; none where it is not in the file."""
    if not 0 <= place < file.size or size <= 0:
        return b""
    start = file.tell()
    buffer = bytearray(min(size, file.size - place))
    file.seek(place)
    SealedFile.readinto(file, buffer)
    file.seek(start)
    return bytes(buffer)


def root_addresses(file: SealedFile) -> list[int]:
    """Where the header of the root group lies, and that of the file as a whole where it has one (II.A).

    Raises ValueError for widths and bases that no writer of today makes.
    """
    block = piece(file, 0, 96).ljust(96, b"\0")
    version = block[8]
    if version < 2:
        widths, at = block[13:15], 24 + 4 * (version == 1)
        base, root, more = block[at : at + 8], block[at + 40 : at + 48], b"\xff" * 8
    else:
        widths, base, root, more = block[9:11], block[12:20], block[36:44], block[20:28]
    if version > 3 or widths != b"\x08\x08" or base.strip(b"\0"):
        raise ValueError("its first block is damaged, or of a version or widths that are not in use")
    return [place for place in (int.from_bytes(root, "little"), int.from_bytes(more, "little")) if place != UNDEFINED]


def messages(file: SealedFile, address: int) -> Iterator[tuple[int, bool, bytes]]:
    """Type of the messages of a header (IV.A.1), whether each lies elsewhere and is shared, and body; with those of its continuations."""
    head = piece(file, address, 34)
    if len(head) < 34:
        return
    second = head[:4] == b"OHDR"
    if second:  # IV.A.1.b
        flags = head[5]
        at = 6 + 16 * bool(flags & 0x20) + 4 * bool(flags & 0x10)
        width = 1 << (flags & 3)
        blocks = [(address + at + width, int.from_bytes(head[at : at + width], "little"))]
        step, form = 4 + 2 * bool(flags & 4), "<BHB"
    else:  # IV.A.1.a
        blocks = [(address + 16, int.from_bytes(head[8:12], "little"))]
        step, form = 8, "<HHB"
    for place, size in blocks:
        block, at = piece(file, place, size), 0
        while at + step <= len(block):
            kind, length, flags = struct.unpack_from(form, block, at)
            body = block[at + step : at + step + length]
            at += step + length
            if kind == CONTINUATION and len(body) >= 16:
                place, size = struct.unpack_from("<QQ", body)
                more = (place + 4, size - 8) if second else (place, size)  # without "OCHK" and the checksum
                if more not in blocks and len(blocks) < MOST_BLOCKS:
                    blocks.append(more)
            yield kind, bool(flags & 2), body


def element_size(file: SealedFile, body: bytes, shared: bool) -> int | None:
    """Bytes of an element of a datatype of variable length (IV.A.2.d), 1 for text, 0 if it is damaged; None for other types.

    `body` is that of a datatype message, or of one that says where it lies (IV.A.1.c).
    """
    if shared:
        place = int.from_bytes(body[8:16] if body[:1] == b"\1" else body[2:10], "little")
        body = next((found for kind, again, found in messages(file, place) if kind == DATATYPE and not again), b"")
    if not body or body[0] & 15 != VARIABLE_LENGTH:
        return None
    text, size = body[1] & 15, int.from_bytes(body[4:8], "little")
    kind, element = (body[8] & 15, int.from_bytes(body[12:16], "little")) if len(body) >= 16 else (0, 0)
    if size != DESCRIPTOR_SIZE or (text and (kind not in LETTERS or element != 1)):
        return 0
    return element
