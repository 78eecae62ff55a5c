"""An object of an HDF5 file, checked by Python before HDF5 opens it: what HDF5 trusts there can crash it, hang it or take all memory.

This covers the structures that HDF5 writes unless asked for newer ones, as loratk, h5py, Keras and R do. The newer ones for many links,
attributes or chunks, over which HDF5 2.0 crashes in many ways once their checksums are made to fit, are refused.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from .hdf5_headers import DATATYPE, UNDEFINED, element_size, messages, piece, root_addresses
from .hdf5_strings import DESCRIPTOR, in_attribute
from .hdf5_strings import heap_fault as strings_fault
from .hdf5_trees import CHUNKS, GROUP, heap_fault, tree_fault
from .seal import SealedFile

_LINK_INFO, _LAYOUT, _ATTRIBUTE, _SHARED_TABLE, _SYMBOL_TABLE, _ATTRIBUTE_INFO = 0x02, 0x08, 0x0C, 0x0F, 0x11, 0x15
_COMPACT, _CONTIGUOUS, _CHUNKED = range(3)
_SINGLE, _IMPLICIT = 1, 2  # indexes of chunks without a structure of their own
_NEWER = "keeps its {} in a structure of HDF5's newer layouts, over which HDF5 can crash; write the file anew (h5py: libver='earliest')"


class ObjectCheck:
    """Checks of the objects of one file; each object, and each heap of strings, is walked once."""

    def __init__(self, file: SealedFile) -> None:
        self._file = file
        self._objects: dict[int, str | None] = {}
        self._sound: set[int] = set()

    def root(self) -> str | None:
        """What is wrong with the root group, or the file as a whole. Raises ValueError where the root cannot be found."""
        return next(filter(None, map(self.fault, root_addresses(self._file))), None)

    def fault(self, address: int) -> str | None:
        """What is wrong with the object whose header is at an address, or None."""
        if address not in self._objects:
            self._objects[address] = next(filter(None, self._faults(address)), None)
        return self._objects[address]

    def _faults(self, address: int) -> Iterator[str | None]:
        found = list(messages(self._file, address))
        sizes = [element_size(self._file, body, shared) for number, shared, body in found if number == DATATYPE]
        element = min((size for size in sizes if size is not None), default=None)
        for number, _, body in found:
            if number == _ATTRIBUTE and (string := in_attribute(self._file, body)) is not None:
                yield self._string(*string)
            elif number == _SYMBOL_TABLE and len(body) >= 16:
                tree, heap = struct.unpack_from("<QQ", body)
                yield tree_fault(self._file, tree, GROUP, 8)
                yield heap_fault(self._file, heap)
            elif number == _SHARED_TABLE:
                yield _NEWER.format("shared messages")
            elif number in (_LINK_INFO, _ATTRIBUTE_INFO) and len(body) > 1:
                at = 2 + (body[1] & 1) * (8 if number == _LINK_INFO else 2)
                if int.from_bytes(body[at : at + 8], "little") != UNDEFINED:
                    yield _NEWER.format("links" if number == _LINK_INFO else "attributes")
            elif number == _LAYOUT:
                yield self._layout(body, element)

    def _layout(self, body: bytes, element: int | None) -> str | None:
        """A dataset's tree of chunks, or the string that is all it holds (IV.A.2.i)."""
        body = body.ljust(32, b"\0")
        old = body[0] < 3
        way, axes, at = (body[2], body[1], 8) if old else (body[1], body[2], 3 if body[1] == _CHUNKED else 2)
        place = int.from_bytes(body[at : at + 8], "little")
        if way == _CHUNKED and body[0] <= 3:
            return tree_fault(self._file, place, CHUNKS, 8 + 8 * axes)
        if way == _CHUNKED:  # version, class, flags, count of axes, bytes of each, axes, index
            index = body[5 + body[3] * body[4] :][:1]
            return None if index in (bytes([_SINGLE]), bytes([_IMPLICIT])) else _NEWER.format("chunks")
        if element is None or way not in (_COMPACT, _CONTIGUOUS):
            return None
        start = 8 + 4 * axes + 4 if old else 4
        if way == _CONTIGUOUS:  # where nothing is written yet, there is no such place
            return self._string(element, piece(self._file, place, DESCRIPTOR.size).ljust(DESCRIPTOR.size, b"\0"))
        return self._string(element, body[start : start + DESCRIPTOR.size])

    def _string(self, element: int, descriptor: bytes) -> str | None:
        if len(descriptor) < DESCRIPTOR.size:
            return "has a string cut short"
        if not element:
            return "has a string whose type is damaged"
        count, heap, _ = DESCRIPTOR.unpack(descriptor)
        length = count * element
        if length > self._file.size:
            return f"announces a string of {length} bytes in a file of {self._file.size}"
        if not length or heap in self._sound:
            return None
        if (fault := strings_fault(self._file, heap)) is None:
            self._sound.add(heap)
        return fault
