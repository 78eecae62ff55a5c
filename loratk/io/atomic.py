"""Atomic writes: a file is there as it was, or as it should be, whatever happens in between.

The bytes go to a temporary file in the same folder, are forced to the disk, and take the target's name in one step.
Temporary files that a killed process left behind go with the next write of the same target.
"""

from __future__ import annotations

import itertools
import os
import platform
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from ..errors import StoreError
from .leavings import claim, remove_if_abandoned

SUFFIX = ".loratk-tmp"
_counter = itertools.count()
_live: set[str] = set()  # temporary files of this process that are being written now


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A binary file, open for writing and reading, that becomes `path` when the block ends and vanishes when it raises.

    A link is followed, and an existing target keeps its permissions. OSError (disk full, read-only folder) becomes StoreError.
    """
    target = Path(os.path.realpath(path))
    temporary = None
    try:
        mode = _permissions(target)
        _remove_leavings(target)
        temporary, file = _create(target)
        with file:
            if mode is not None:
                os.chmod(temporary, mode)
            yield file
            file.flush()
            os.fsync(file.fileno())
            if os.name != "nt":  # there, an open file cannot be renamed; here, a closed one could be taken for a leaving
                os.replace(temporary, target)
        if os.name == "nt":
            os.replace(temporary, target)
    except OSError as error:
        if isinstance(error, StoreError):
            raise
        raise StoreError(f"cannot write '{path}': {error.strerror or error}; {_left(target)}") from error
    finally:
        if temporary is not None:
            with suppress(OSError):
                temporary.unlink()
            _live.discard(temporary.name)
    sync_folder(target.parent)


def temporary_prefix(target: Path) -> tuple[str, str]:
    """Start of the temporary names of `target`, its name, shortened, and a checksum of it; and what tells this machine from others."""
    machine = zlib.crc32(platform.node().encode())
    return f".{target.name[:40]}.{zlib.crc32(os.fsencode(target.name)):08x}-", f"{machine:08x}-"


def _create(target: Path) -> tuple[Path, BinaryIO]:
    """A new temporary file beside `target`, marked as in use."""
    while True:
        temporary = target.with_name(f"{''.join(temporary_prefix(target))}{os.getpid()}-{next(_counter)}{SUFFIX}")
        _live.add(temporary.name)
        try:
            file = temporary.open("x+b")
        except BaseException as error:
            _live.discard(temporary.name)
            if isinstance(error, FileExistsError):  # of a process of this number that was killed, or that runs in another container
                continue
            raise
        if claim(file):
            return temporary, file
        file.close()
        _live.discard(temporary.name)


def _permissions(target: Path) -> int | None:
    try:
        mode = target.stat().st_mode
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(mode):
        kind = "folder" if stat.S_ISDIR(mode) else "device or pipe"
        raise StoreError(f"cannot write '{target}': it is a {kind}; give the path of a file")
    return stat.S_IMODE(mode)


def _remove_leavings(target: Path) -> None:
    start, machine = temporary_prefix(target)
    for entry in target.parent.iterdir():
        name = entry.name
        if name.startswith(start) and name.endswith(SUFFIX) and name not in _live:
            remove_if_abandoned(entry, here=name.startswith(start + machine))


def _left(target: Path) -> str:
    if os.path.exists(target):  # Path.exists raises where a folder may not be looked into
        return "the file that was there is untouched"
    if not os.path.isdir(target.parent):
        return f"there is no folder '{target.parent}': make it first"
    return "nothing was written: check the folder's permissions and free space"


def sync_folder(folder: Path) -> None:
    """Force the names in a folder to the disk, where the system can."""
    with suppress(OSError):  # not every system lets a folder be opened; the rename itself is done
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
