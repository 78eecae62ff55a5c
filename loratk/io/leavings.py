"""Temporary files of writers that were killed: told from those in use by a lock, which dies with its process."""

from __future__ import annotations

import errno
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

DAY = 86400.0
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP}


def claim(file: BinaryIO) -> bool:
    """Mark a new file as in use until it is closed. False if another writer took it for a leaving and removed it before that."""
    if fcntl is None:
        return True
    with suppress(OSError):  # a file system without locks: there leavings are kept for a day
        fcntl.lockf(file, fcntl.LOCK_EX)  # HDF5 locks with flock, which does not see this one
    return os.fstat(file.fileno()).st_nlink > 0


def remove_if_abandoned(path: Path, *, here: bool) -> None:
    """Remove a temporary file that nobody writes to any more; `here` if this machine made it, else its age tells: a day without a write.

    Never for a file that this process writes: closing it here would undo the lock.
    """
    try:
        if here and fcntl is not None:
            with path.open("r+b") as file:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()  # under the lock: else it could be of a writer that just begins
                return
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            return
    with suppress(OSError):
        if time.time() - path.stat().st_mtime > DAY:
            path.unlink()
