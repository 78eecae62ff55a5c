"""The trees and heaps that the oldest layout of HDF5 is made of, walked by Python before HDF5 does.

HDF5 2.0 follows a tree that leads back to itself until the stack ends, and the free list of such a heap until memory does.
Sections are those of the HDF5 file format specification, version 3.0.
"""

from __future__ import annotations

import struct

from .hdf5_headers import UNDEFINED, piece
from .seal import SealedFile

GROUP, CHUNKS = 0, 1
_NODE = struct.Struct("<4sBBHQQ")
_HEAP = struct.Struct("<4sB3xQQQ")
_END = 1  # of a free list


def tree_fault(file: SealedFile, place: int, kind: int, key: int) -> str | None:
    """What is wrong with a tree of one kind whose keys take so many bytes (III.A.1): nodes of other kinds or levels, or reached twice."""
    if place == UNDEFINED:
        return None
    seen: set[int] = set()
    found: list[tuple[int, int | None]] = [(place, None)]
    while found:
        at, want = found.pop()
        head = piece(file, at, _NODE.size)
        if len(head) < _NODE.size:
            return f"has a tree that leads out of the file, to byte {at}"
        mark, its_kind, level, count, _, _ = _NODE.unpack(head)
        if at in seen or mark != b"TREE" or its_kind != kind or want not in (None, level):
            return f"has a tree that is damaged at byte {at}"
        seen.add(at)
        body = piece(file, at + _NODE.size, count * (key + 8))
        children = [int.from_bytes(body[end - 8 : end], "little") for end in range(key + 8, len(body) + 1, key + 8)]
        if level:
            found += [(child, level - 1) for child in children]
        elif kind == GROUP and (len({*children}) < len(children) or not seen.isdisjoint(children)):
            return f"has a tree with a leaf reached twice, at byte {at}"
        elif kind == GROUP:
            seen.update(children)
    return None


def heap_fault(file: SealedFile, place: int) -> str | None:
    """What is wrong with the heap of a group's names (III.D): a free list that leads out of it, or has no end."""
    head = piece(file, place, _HEAP.size)
    if len(head) < _HEAP.size:
        return f"keeps its names in a heap that is not there, at byte {place}"
    mark, _, size, free, data = _HEAP.unpack(head)
    seen: set[int] = set()
    while free not in (_END, UNDEFINED):
        if mark != b"HEAP" or free in seen or free + 16 > size or free + data + 16 > file.size:
            return f"keeps its names in a heap that is damaged, at byte {place}"
        seen.add(free)
        free = int.from_bytes(piece(file, data + free, 8), "little")
    return None
