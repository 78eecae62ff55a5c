"""The npz store: NumPy's own archive, with the strings in one JSON member, and sealed. numpy.load reads the arrays."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, ClassVar

import numpy as np
from numpy.lib import format as npy

from ..errors import FormatError, StateError, faults
from . import strict_json
from .names import dtype_fault, name_faults, text_fault
from .seal import BLOCK, SealedFile, append_seal, seal_size
from .store import COMPRESSION, Option, Reader, StoreBase, bomb_fault, check_known, compression_level, open_binary

MEMBER = "__loratk__.json"
_EMPTY_ARCHIVE = b"PK\5\6"
_COMMENT_LIMIT = 65535
_ADVICE = f"If it was edited on purpose, set 'sealed' to false in its member {MEMBER!r} and delete the archive's comment."


class NpzStore(StoreBase):
    """Arrays as `<name>.npy` members; equal contents give equal bytes."""

    name = "npz"
    suffixes = (".npz",)
    magic = b"PK\3\4"
    options: ClassVar[Mapping[str, Option]] = {"compression": COMPRESSION}

    def __init__(self, compression: int | str = 0) -> None:
        self.compression = compression_level(compression)

    def sniff(self, path: Path) -> bool:
        """Whether it is a zip archive whose first member is one of ours or an .npy, or that has no member."""
        with open_binary(path) as file:
            head = file.read(30)
            member = file.read(int.from_bytes(head[26:28], "little"))
        return head.startswith(_EMPTY_ARCHIVE) or (head.startswith(self.magic) and (member == MEMBER.encode() or member.endswith(b".npy")))

    def save(self, file: BinaryIO, arrays: Mapping[str, np.ndarray], strings: Mapping[str, str]) -> None:
        """Write everything in sorted order; the seal becomes the archive's comment."""
        record = {"format": "loratk-npz", "format_version": 1, "sealed": True, "strings": dict(strings)}
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr(_member(MEMBER), strict_json.dumps(record))
            for name in sorted(arrays):
                array = arrays[name]
                with archive.open(_member(f"{name}.npy", self.compression), "w", force_zip64=array.nbytes >= 1 << 30) as out:
                    npy.write_array(out, np.asarray(array, array.dtype.newbyteorder("<"), order="C"), allow_pickle=False)
        size, block = file.seek(0, os.SEEK_END), BLOCK
        while seal_size(size, block) > _COMMENT_LIMIT:
            block *= 2
        file.seek(size - 2)  # the last field of the archive's end record: the length of its comment
        file.write(seal_size(size, block).to_bytes(2, "little"))
        append_seal(file, block=block)

    @contextmanager
    def open(self, path: Path) -> Iterator[Reader]:
        """The file for lazy reading: names, shapes and dtypes are checked now, the bytes of an array when it is read."""
        with SealedFile(path, _ADVICE) as file:
            with file.guard(self.name):
                archive = zipfile.ZipFile(file)
                reader = NpzReader(archive, file)
            with archive:
                yield reader


@dataclass(frozen=True)
class _Entry:
    member: zipfile.ZipInfo
    shape: tuple[int, ...]
    dtype: np.dtype
    fortran: bool
    header: int  # bytes before the data


class NpzReader:
    """An open npz file whose members have passed the checks."""

    def __init__(self, archive: zipfile.ZipFile, file: SealedFile) -> None:
        self._archive, self._file = archive, file
        self.strings: dict[str, str] = {}
        self._entries: dict[str, _Entry] = {}
        found = list(self._collect())
        if found:
            raise FormatError(faults(f"'{file.path}' is not an archive of plain arrays (docs/format.md):", found))
        self._entries = dict(sorted(self._entries.items()))

    def names(self) -> list[str]:
        """The name of every array, sorted."""
        return list(self._entries)

    def info(self, name: str) -> tuple[tuple[int, ...], np.dtype]:
        """The shape and dtype of an array, without loading it."""
        check_known([name], self._entries)
        entry = self._entries[name]
        return entry.shape, entry.dtype.newbyteorder("=")

    def array(self, name: str) -> np.ndarray:
        """One array, loaded now and checked."""
        check_known([name], self._entries)
        if self._file.closed:
            raise StateError(f"'{self._file.path}' is closed; read inside the 'with' block of open()")
        entry = self._entries[name]
        with self._file.guard(NpzStore.name), self._archive.open(entry.member) as source:
            source.read(entry.header)
            array = np.empty(entry.shape, entry.dtype, order="F" if entry.fortran else "C")
            raw = array.reshape(-1, order="A").view(np.uint8).data
            done = 0
            while done < len(raw) and (piece := source.read(min(len(raw) - done, 1 << 20))):
                raw[done : done + len(piece)] = piece
                done += len(piece)
            if done < len(raw) or source.read(1):  # reading to the end also checks the CRC
                raise FormatError(f"'{self._file.path}': array {name!r} holds another number of bytes than it announces; get a new copy")
        return np.asarray(array, entry.dtype.newbyteorder("="), order="C")

    def verify(self) -> None:
        """Check the whole file against its seal now. Raises FormatError."""
        self._file.verify()

    def _collect(self) -> Iterator[str]:
        members: dict[str, zipfile.ZipInfo] = {}
        for member in self._archive.infolist():
            label = member.orig_filename
            if label in members:
                yield f"it has two members named {label!r}"
            members[label] = member
        if (fault := bomb_fault(sum(member.file_size for member in members.values()), self._file.size)) is not None:
            yield f"with all its members it {fault}"  # several may lie in the same bytes
            return
        record = members.pop(MEMBER, None)
        if record is not None:
            yield from self._read_record(record)
        names = [label.removesuffix(".npy") for label in members]
        yield from name_faults(names, self.strings)
        for label, member in members.items():
            fault = "is no .npy file" if not label.endswith(".npy") else self._add(label.removesuffix(".npy"), member)
            if fault is not None:
                yield f"member {label!r} {fault}"

    def _read_record(self, member: zipfile.ZipInfo) -> Iterator[str]:
        try:
            if (fault := _member_fault(member, self._file.size)) is not None:
                raise ValueError(fault)
            record = strict_json.loads(self._archive.read(member).decode())
            if record.get("sealed") is True:
                self._file.require_seal()
            if (record["format"], record["format_version"]) != ("loratk-npz", 1):
                raise ValueError(f"it says format {record['format']!r}, version {record['format_version']!r}, not 'loratk-npz', 1")
            strings = record["strings"]
            found = [f"string {name!r} {fault}" for name, value in strings.items() if (fault := text_fault(value)) is not None]
            self.strings = {name: value for name, value in strings.items() if isinstance(value, str)}
        except FormatError:
            raise
        except (KeyError, TypeError, AttributeError) as error:
            yield f"member {MEMBER!r} lacks something or has it in another form: {error}"
        except ValueError as error:
            yield f"member {MEMBER!r} cannot be used: {error}"
        else:
            yield from found

    def _add(self, name: str, member: zipfile.ZipInfo) -> str | None:
        if (fault := _member_fault(member, self._file.size)) is not None:
            return fault
        with self._archive.open(member) as source:
            try:
                version = npy.read_magic(source)
                if version not in ((1, 0), (2, 0)):
                    return f"has the .npy version {version}, made for structured dtypes"
                read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
                shape, fortran, dtype = read(source)
            except FormatError:
                raise
            except Exception as error:
                return f"has no .npy header ({error})"
            header = source.tell()
        if (fault := dtype_fault(dtype)) is not None:
            return fault
        size = dtype.itemsize
        for length in shape:
            size *= length
        if min(shape, default=0) < 0 or header + size != member.file_size:
            return f"declares shape {shape} of {dtype}, {size} bytes, but holds {member.file_size - header}"
        self._entries[name] = _Entry(member, shape, dtype, fortran, header)
        return None


def _member(name: str, level: int = 0) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo("_")
    info.filename = name  # set afterwards: the constructor would change a backslash on Windows
    info.create_system = 3
    if level:
        info.compress_type, info._compresslevel = zipfile.ZIP_DEFLATED, level  # type: ignore[attr-defined]
    return info


def _member_fault(member: zipfile.ZipInfo, room: int) -> str | None:
    if member.flag_bits & 1:
        return "is encrypted"
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return f"is compressed by method {member.compress_type}; only stored and deflated members are read"
    if member.compress_size > room:
        return f"claims {member.compress_size} stored bytes in a file of {room}"
    return bomb_fault(member.file_size, member.compress_size)
