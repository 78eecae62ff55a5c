"""A result while it is made, in a hidden folder beside its place: what is finished in it survives an interruption, and is gone on from.

    .OUT.<crc>.loratk-merge/journal     a line for what is made of what, then one for each array that is finished, with its checksums
    .OUT.<crc>.loratk-merge/...         the files of the result

Only one process at a time works in it. It is for one job, told by a key; what another job left there is removed.
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import StoreError
from ..io.atomic import sync_folder
from ..io.homes import lock_folder, unlock_folder
from .items import Done
from .rounding import Rounding

SUFFIX = ".loratk-merge"
JOURNAL = "journal"


class Partial:
    """The folder, while it is locked, and what of this job is finished in it: an array's name -> what came of it."""

    def __init__(self, folder: Path, key: str) -> None:
        self.folder, self._key, self.grown = folder, key, False
        self.finished = self._read()
        if not self.finished:
            for entry in folder.iterdir():
                shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        self._journal: BinaryIO = (folder / JOURNAL).open("ab", buffering=0)
        if not self.finished:
            self._line({"job": key})

    def add(self, done: Done) -> None:
        """Note that an array is finished: its bytes have been written."""
        self._line(asdict(done))
        self.grown = True

    def drop(self, names: Iterable[str]) -> None:
        """Forget arrays that are not as the journal says."""
        for name in list(names):
            del self.finished[name]

    def close(self) -> None:
        """Close the journal and remove it: everything is finished."""
        self._journal.close()
        (self.folder / JOURNAL).unlink(missing_ok=True)

    def stop(self) -> None:
        """Close the journal, to go on later."""
        self._journal.close()

    def _line(self, record: Any) -> None:
        self._journal.write(json.dumps(record).encode() + b"\n")

    def _read(self) -> dict[str, Done]:
        """What the journal says, if it is of this job; a last line that was cut short counts for nothing."""
        try:
            lines = (self.folder / JOURNAL).read_bytes().split(b"\n")[:-1]
            first, *rest = [json.loads(line) for line in lines]
            if first != {"job": self._key}:
                return {}
            records = [{**record, "rounding": record["rounding"] and Rounding(**record["rounding"])} for record in rest]
            return {record["name"]: Done(**record) for record in records}
        except (FileNotFoundError, ValueError, TypeError, KeyError):
            return {}


def partial_folder(out: Path) -> Path:
    """Where a result is made."""
    return out.with_name(f".{out.name[:40]}.{zlib.crc32(os.fsencode(out.name)):08x}{SUFFIX}")


@contextmanager
def partial(out: Path, key: str, *, resume: bool = True) -> Iterator[Partial]:
    """The folder to make `out` in. It stays if the block is interrupted (Ctrl-C, as after a kill), and goes if it ends or fails.

    Raises StoreError if another process is at it, or nothing can be written there.
    """
    folder = partial_folder(out)
    if not out.parent.is_dir():
        raise StoreError(f"cannot write '{out}': there is no folder '{out.parent}': make it first")
    try:
        folder.mkdir(exist_ok=True)
        handle = lock_folder(folder)
    except BlockingIOError as error:
        raise StoreError(f"cannot write '{out}': another process is merging into it; wait for its end") from error
    except OSError as error:
        raise StoreError(f"cannot write '{out}': {error.strerror or error}; check the folder's permissions") from error
    keep = False
    try:
        if not resume:
            (folder / JOURNAL).unlink(missing_ok=True)
        _mend(out)
        made = Partial(folder, key)
        try:
            yield made
        finally:
            made.stop()
    except KeyboardInterrupt:
        keep = made.grown or bool(made.finished)
        raise
    except OSError as error:
        if isinstance(error, StoreError):
            raise
        raise StoreError(
            f"cannot write '{out}': {error.strerror or error}; nothing was changed: check free space and permissions"
        ) from error  # fmt: skip
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)
        unlock_folder(handle)


def _aside(out: Path) -> Path:
    """Where a folder is while another takes its place."""
    return out.with_name(f"{partial_folder(out).name}-old")


def _mend(out: Path) -> None:
    """Put back, or remove, what a process that was killed while it changed folders left aside."""
    if (aside := _aside(out)).is_dir():
        if out.exists():
            shutil.rmtree(aside, ignore_errors=True)
        else:
            os.rename(aside, out)


def publish(made: Path, out: Path) -> None:
    """Give a file or folder that is whole its name, in place of what is there. Raises OSError.

    A folder cannot take the place of another in one step: the old one goes aside first, and comes back if the new one cannot take its
    place.
    """
    if made.is_dir() and out.is_dir():
        aside = _aside(out)
        os.rename(out, aside)
        try:
            os.rename(made, out)
        except BaseException:
            os.rename(aside, out)
            raise
        sync_folder(out.parent)
        shutil.rmtree(aside, ignore_errors=True)
        return
    if not made.is_dir() and out.exists():
        shutil.copymode(out, made)
    os.replace(made, out)
    sync_folder(out.parent)
