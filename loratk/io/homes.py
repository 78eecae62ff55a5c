"""Folders to write in before anybody sees the files, and locks on folders, which die with their process.

A home whose writer was killed is told from one in use by its lock, as `leavings` does it for single files.
"""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import StoreError
from .atomic import SUFFIX, temporary_prefix
from .leavings import DAY

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

PATIENCE = 30.0
"""Seconds that a writer waits for another one."""
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EBADF, errno.EISDIR}
_counter = itertools.count()


@contextmanager
def new_home(place: Path, keep: Callable[[Path], bool]) -> Iterator[Path]:
    """A folder named after `place` and beside it, locked as long as the block lasts. It is removed then, unless `keep` says otherwise."""
    remove_homes(place)
    while True:
        home = place.with_name(f"{''.join(temporary_prefix(place))}{os.getpid()}-{next(_counter)}{SUFFIX}")
        try:
            home.mkdir()
        except FileExistsError:  # of a process of this number that was killed, or that runs in another container
            continue
        with suppress(FileNotFoundError, BlockingIOError):  # another writer took it for a leaving before it was locked
            handle = lock_folder(home)
            if home.is_dir():
                break
            unlock_folder(handle)
    try:
        yield home
    finally:
        with suppress(OSError):
            if not keep(home):
                shutil.rmtree(home, ignore_errors=True)
        unlock_folder(handle)


def remove_homes(place: Path) -> None:
    """Remove the homes named after `place` whose writers are gone."""
    start, machine = temporary_prefix(place)
    for entry in place.parent.iterdir():
        if entry.name.startswith(start) and entry.name.endswith(SUFFIX) and entry.is_dir() and not entry.is_symlink():
            with suppress(OSError):  # also where a living writer has locked it
                handle = lock_folder(entry)
                here = handle is not None and entry.name.startswith(start + machine)
                if here or time.time() - entry.stat().st_mtime > DAY:
                    shutil.rmtree(entry, ignore_errors=True)
                unlock_folder(handle)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other writers from a folder, after waiting for one that is at it; StoreError if that takes too long.

    Where there are no locks for folders, nobody is kept.
    """
    end = time.monotonic() + PATIENCE
    while True:
        try:
            handle = lock_folder(folder)
            break
        except BlockingIOError as error:
            if time.monotonic() > end:
                raise StoreError(f"cannot write '{folder}': another program is writing it; try once more") from error
            time.sleep(0.005)
    try:
        yield
    finally:
        unlock_folder(handle)


def lock_folder(folder: Path) -> int | None:
    """A handle that locks a folder until it is unlocked or the process ends; None where there are no such locks.

    Raises BlockingIOError if another process, or another part of this one, has locked it.
    """
    if fcntl is None:
        return None
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # lockf would want it open for writing, which no folder is
    except OSError as error:
        os.close(handle)
        if error.errno in _NO_LOCKS:
            return None
        raise
    return handle


def unlock_folder(handle: int | None) -> None:
    """Undo `lock_folder`, also for children that have the handle since a fork."""
    if handle is not None:
        fcntl.flock(handle, fcntl.LOCK_UN)
        os.close(handle)
