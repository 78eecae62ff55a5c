"""Atomic writes: a file is there as it was, or as it should be, whatever happens in between.

The bytes go to a temporary file in the same folder, are forced to the disk, and take the target's name in one step.
Temporary files that a killed process left behind go with the next write of the same target.
"""

from __future__ import annotations

import itertools
import os
import platform
import stat
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from ..errors import StoreError

SUFFIX = ".loratk-tmp"
_counter = itertools.count()
_live: set[str] = set()  # temporary files of this process that are being written now


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A binary file, open for writing and reading, that becomes `path` when the block ends and vanishes when it raises.

    A link is followed, and an existing target keeps its permissions. OSError (disk full, read-only folder) becomes StoreError.
    """
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f"{_prefix(target)}{os.getpid()}-{next(_counter)}{SUFFIX}")
    try:
        mode = _permissions(target)
        _remove_stale(target)
        _live.add(temporary.name)
        with temporary.open("x+b") as file:
            if mode is not None:
                os.chmod(temporary, mode)
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except OSError as error:
        if isinstance(error, StoreError):
            raise
        raise StoreError(f"cannot write '{path}': {error.strerror or error}; {_left(target)}") from error
    finally:
        with suppress(OSError):
            temporary.unlink()
        _live.discard(temporary.name)
    _sync_folder(target.parent)


def _prefix(target: Path) -> str:
    """Start of the temporary names of `target`: the name, shortened, its checksum, and the machine, whose process numbers follow."""
    machine = zlib.crc32(platform.node().encode())
    return f".{target.name[:40]}.{zlib.crc32(os.fsencode(target.name)):08x}-{machine:08x}-"


def _permissions(target: Path) -> int | None:
    try:
        mode = target.stat().st_mode
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(mode):
        kind = "folder" if stat.S_ISDIR(mode) else "device or pipe"
        raise StoreError(f"cannot write '{target}': it is a {kind}; give the path of a file")
    return stat.S_IMODE(mode)


def _remove_stale(target: Path) -> None:
    prefix = _prefix(target)
    for entry in target.parent.iterdir():
        if entry.name.startswith(prefix) and entry.name.endswith(SUFFIX) and not _in_use(entry, entry.name[len(prefix) :]):
            with suppress(OSError):
                entry.unlink()


def _in_use(entry: Path, rest: str) -> bool:
    number = rest.split("-")[0]
    if entry.name in _live or not number.isdecimal():
        return True
    if int(number) == os.getpid():
        return False
    if os.name == "nt":  # there, os.kill would end the process it is asked about
        with suppress(OSError):
            return time.time() - entry.stat().st_mtime < 86400
        return True
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        pass
    return True


def _left(target: Path) -> str:
    if target.exists():
        return "the file that was there is untouched"
    if not target.parent.is_dir():
        return f"there is no folder '{target.parent}': make it first"
    return "nothing was written: check the folder's permissions and free space"


def _sync_folder(folder: Path) -> None:
    with suppress(OSError):  # not every system lets a folder be opened; the rename itself is done
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
