"""The seal: checksums at a file's end that cover every byte, checked block by block as bytes are first read.

    file = body | SHA-256 of each block of the body | footer
    footer (64 bytes) = magic (16) | body length (u64) | block length (u64) | SHA-256 of the table and the 32 bytes before it

HDF5 ignores bytes after its end, and in a zip file the seal is the archive's comment, so other programs read a sealed file
as ever. The file libraries see only bytes that have been checked: what they cannot be trusted with never reaches them.
Integers are little-endian.
"""

from __future__ import annotations

import hashlib
import io
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import FormatError
from .store import open_binary, translated

MAGIC = b"loratk-seal-1\r\n\0"
FOOTER = struct.Struct("<16sQQ32s")
DIGEST = 32
BLOCK = 65536
SMALL = 16 * BLOCK  # up to here a file is checked at once


def seal_size(body: int, block: int = BLOCK) -> int:
    """Bytes of the seal of a body of so many bytes."""
    return -(-body // block) * DIGEST + FOOTER.size


def append_seal(file: BinaryIO, *, block: int = BLOCK) -> None:
    """Seal a file that is open for reading and writing: everything in it becomes the body."""
    file.seek(0)
    body, table = 0, bytearray()
    while piece := file.read(block):
        body += len(piece)
        table += hashlib.sha256(piece).digest()
    head = FOOTER.pack(MAGIC, body, block, b"\0" * DIGEST)[:-DIGEST]
    file.seek(0, os.SEEK_END)
    file.write(table + head + hashlib.sha256(table + head).digest())


def has_seal(path: Path) -> bool:
    """Whether a file ends as a sealed one does; its checksums are not looked at."""
    with open_binary(path) as file:
        file.seek(max(file.seek(0, os.SEEK_END) - FOOTER.size, 0))
        return file.read(len(MAGIC)) == MAGIC


class SealedFile(io.RawIOBase):
    """A file for reading whose bytes are checked against its seal, where it has one, before anyone sees them.

    A mismatch raises FormatError, also kept as `fault`, since a library in between may swallow it. `advice` ends its message.
    """

    def __init__(self, path: Path, advice: str = "") -> None:
        super().__init__()
        self.path, self.advice = path, advice
        self.fault: FormatError | None = None
        self.sealed = False
        self.bytes_read = 0
        self._file = open_binary(path)
        try:
            self.size = self._file.seek(0, os.SEEK_END)
            self._at = 0
            self._read_seal()
        except BaseException:
            self._file.close()
            raise

    def _read_seal(self) -> None:
        self._body, self._block, self._table, self._checked = 0, BLOCK, b"", bytearray()
        footer = self._bytes(max(self.size - FOOTER.size, 0), FOOTER.size)
        if not footer.startswith(MAGIC):
            return
        _, body, block, digest = FOOTER.unpack(footer)
        if not block or body + seal_size(body, block) != self.size:
            raise self.damaged("its seal is of another length than the file")
        self._table = self._bytes(body, self.size - FOOTER.size - body)
        if hashlib.sha256(self._table + footer[:-DIGEST]).digest() != digest:
            raise self.damaged("the seal at its end is damaged")
        self._body, self._block = body, block
        self._checked = bytearray(len(self._table) // DIGEST)
        self.sealed = True
        if body <= SMALL:
            self.verify()

    def damaged(self, what: str) -> FormatError:
        """The error for a file that is not what was sealed, to be raised."""
        self.fault = FormatError(f"'{self.path}' is not as it was written: {what}. Get a new copy of it. {self.advice}".rstrip())
        return self.fault

    def _bytes(self, start: int, count: int) -> bytes:
        self._file.seek(start)
        self.bytes_read += count
        return self._file.read(count)

    def _check(self, start: int, stop: int) -> None:
        for index in range(start // self._block, -(-min(stop, self._body) // self._block)):
            if self._checked[index]:
                continue
            first = index * self._block
            last = min(first + self._block, self._body)
            if hashlib.sha256(self._bytes(first, last - first)).digest() != self._table[index * DIGEST : (index + 1) * DIGEST]:
                raise self.damaged(f"bytes {first} to {last - 1} do not match their checksum")
            self._checked[index] = 1

    @contextmanager
    def guard(self, store: str) -> Iterator[None]:
        """Around calls of a file library, which may swallow a failed check or report it as its own: what the seal found goes first."""
        with translated(self.path, store):
            try:
                yield
            finally:
                if self.fault is not None:
                    raise self.fault

    def verify(self) -> None:
        """Check the whole file now. Raises FormatError."""
        self._check(0, self._body)

    def require_seal(self) -> None:
        """The file says that it was sealed. Raises FormatError where no seal is found."""
        if not self.sealed:
            raise self.damaged("the seal that was at its end is missing; it was cut short, or changed by another program")

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def tell(self) -> int:
        """The place of the next byte."""
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Move to a place."""
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self.size}[whence]
        if start + offset < 0:
            raise OSError(f"place {start + offset} is before the start of the file")
        self._at = start + offset
        return self._at

    def read(self, size: int = -1, /) -> bytes:
        """At most so many checked bytes. No memory is taken for those that a wrong length asks for and that are not there."""
        left = max(self.size - self._at, 0)
        return super().read(min(size, left) if size >= 0 else left) or b""

    def readinto(self, buffer: Any, /) -> int:
        """Fill the buffer with checked bytes; fewer only at the end of the file."""
        view = memoryview(buffer).cast("B")
        self._check(self._at, self._at + len(view))
        self._file.seek(self._at)
        count, piece = 0, 1
        while count < len(view) and piece:
            piece = self._file.readinto(view[count:])  # type: ignore[attr-defined]
            count += piece
        self._at += count
        self.bytes_read += count
        return count

    def close(self) -> None:
        """Close the file."""
        if "_file" in vars(self):  # else it could not be opened, and Python closes what is left
            self._file.close()
        super().close()
