"""The two files of an adapter, which belong together, changed at once.

They cannot take their names in one step. So new ones are written beside the old under names of their own, then one file, the mark, says
that they count, and only then they take the others' places. Up to the mark a reader has the old pair, from it on the new one; what is left
of the renaming is done by the next write. mlx-lm, which knows of no mark, can meet both in the moment between two renamings, unless the
config stays as it was. A folder that is not there yet appears in one step.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from loratk.errors import FormatError, StoreError
from loratk.io import atomic_file
from loratk.io.atomic import SUFFIX

from .config import NAME as CONFIG

TENSORS = "adapters.safetensors"
MARK = ".loratk-mlx-commit"
TRIES = 20
T = TypeVar("T")


def staged(path: Path) -> Path:
    """The name of a file that is to take the place of another."""
    return path.with_name(f".{path.name}.loratk-new")


def current(path: Path) -> Path:
    """Where the content of a file lies now: under its own name, or still under the staged one if the mark is there."""
    return new if path.with_name(MARK).exists() and (new := staged(path)).exists() else path


def together(folder: Path, tensors: str, read: Callable[[Path, Path], T]) -> T:
    """What `read` makes of config and tensors of one and the same write. Raises what it raises, and StoreError."""
    paths = folder / CONFIG, folder / tensors
    for attempt in range(TRIES):
        before = _seen(folder, paths)
        try:
            result = read(*(current(path) for path in paths))
        except (FormatError, StoreError):
            if attempt + 1 < TRIES and _seen(folder, paths) != before:
                continue
            raise
        if _seen(folder, paths) == before:
            return result
    raise StoreError(f"cannot read '{folder}': it was written again and again meanwhile; try once more")


def _seen(folder: Path, paths: Sequence[Path]) -> list[object]:
    """What changes whenever a write goes on."""
    seen: list[object] = []
    for path in (folder / MARK, *paths, *map(staged, paths)):
        try:
            stat = path.stat()
            seen.append((stat.st_ino, stat.st_mtime_ns, stat.st_size))
        except OSError:
            seen.append(None)
    return seen


@contextmanager
def replaced(folder: Path) -> Iterator[tuple[Path, Path]]:
    """Paths to write new config and tensors to, which take their places together when the block ends, or vanish when it raises.

    OSError becomes StoreError; nothing has changed then.
    """
    try:
        with _in_place(folder) if folder.exists() else _as_new(folder) as paths:
            yield paths
    except OSError as error:
        if isinstance(error, StoreError):
            raise
        raise StoreError(f"cannot write '{folder}': {error.strerror or error}; check the folder's permissions and free space") from error


@contextmanager
def _as_new(folder: Path) -> Iterator[tuple[Path, Path]]:
    if not folder.parent.is_dir():
        raise StoreError(f"cannot write '{folder}': there is no folder '{folder.parent}': make it first")
    home = folder.with_name(f".{folder.name}{SUFFIX}")
    shutil.rmtree(home, ignore_errors=True)  # of a process that was killed
    try:
        home.mkdir()
        yield home / CONFIG, home / TENSORS
        _sync(home)
        os.rename(home, folder)
    finally:
        shutil.rmtree(home, ignore_errors=True)
    _sync(folder.parent)


@contextmanager
def _in_place(folder: Path) -> Iterator[tuple[Path, Path]]:
    if not folder.is_dir():
        raise StoreError(f"cannot write '{folder}': it is a file; give the path of a folder")
    finish(folder)
    try:
        yield staged(folder / CONFIG), staged(folder / TENSORS)
        if _equal(staged(folder / CONFIG), folder / CONFIG):
            staged(folder / CONFIG).unlink()
        with atomic_file(folder / MARK) as file:
            file.write(b"The files here named .<name>.loratk-new take the places of <name>.\n")
    finally:
        if not (folder / MARK).exists():
            for name in (CONFIG, TENSORS):
                with suppress(OSError):
                    staged(folder / name).unlink()
    finish(folder)


def finish(folder: Path) -> None:
    """Put staged files in their places if the mark is there, else delete them: what a process left behind that was killed."""
    marked = (folder / MARK).exists()
    for name in (TENSORS, CONFIG):
        with suppress(FileNotFoundError):
            if marked:
                os.replace(staged(folder / name), folder / name)
            else:
                staged(folder / name).unlink()
    _sync(folder)
    with suppress(FileNotFoundError):
        (folder / MARK).unlink()


def _equal(left: Path, right: Path) -> bool:
    return right.is_file() and left.stat().st_size == right.stat().st_size and left.read_bytes() == right.read_bytes()


def _sync(folder: Path) -> None:
    with suppress(OSError):  # not every system lets a folder be opened
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
