"""A folder of files that belong together, changed at once: `replaced_files` to write them, `opened_files` to read them.

Several files cannot take their names in one step. So new ones are written whole into a folder of their own, the home; then one small
file, the mark, says that what is in the home counts; and only then the files move to their places. Up to the mark a reader has all of the
old files, from it on all of the new ones, whether or not the moving is through: what a killed process left of it is done by the next
write. A folder that is not there yet is its own home, and appears in one step.

    adapter/.loratk-commit                       the mark: the name of the home
    adapter/.files.<...>.loratk-tmp/config.json  in the home, on its way to adapter/config.json

Files may lie in folders within the folder, one level deep ("second/config.json"); such a folder may be read and written by itself too.

Writers of one folder wait for each other at the mark, and the last one's files stay, all of them; but not on Windows and on file systems
that have no locks for folders (some of NFS), where two at a time are not kept apart. A program that knows of no mark can meet the files
of two writes in the moment between two moves. A file that stays as it was is not moved, so with the same config there is no such moment.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from ..errors import ConfigError, StoreError, choices
from .atomic import SUFFIX, atomic_file, sync_folder
from .homes import locked, new_home, remove_homes

MARK = ".loratk-commit"
HOME = re.compile(r"\.files\.[0-9a-f]{8}-[0-9a-f]{8}-[0-9]+-[0-9]+" + re.escape(SUFFIX))
TRIES = 1000


@contextmanager
def opened_files(root: str | Path, names: Collection[str]) -> Iterator[dict[str, BinaryIO | None]]:
    """Files of a folder by their names in it, opened for reading and all of one and the same write; None for one that is not there.

    What is open stays as it is, whatever is written meanwhile. Raises StoreError.
    """
    root = Path(os.path.realpath(root))
    for _ in range(TRIES):
        with ExitStack() as stack:
            files = {name: _opened(root, name, stack) for name in names}
            # one that is open keeps its inode, so if all are still in their places, there was a moment at which all of them were
            if all(_identity(files[name]) == _identity(_opened(root, name, stack)) for name in names):
                yield files
                return
    raise StoreError(f"cannot read '{root}': it was written again and again meanwhile; try once more")


def _opened(root: Path, name: str, stack: ExitStack) -> BinaryIO | None:
    """A file where it lies now."""
    place = None
    try:
        while (now := _current(root, name)) != place:
            place = now
            with suppress(FileNotFoundError, NotADirectoryError):
                return stack.enter_context(place.open("rb"))
    except OSError as error:
        raise StoreError(f"cannot read '{root / name}': {error.strerror or error}; check the path and its permissions") from error
    return None


def _identity(file: BinaryIO | None) -> tuple[int, ...] | None:
    if file is None:
        return None
    stat = os.fstat(file.fileno())
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns


def _current(root: Path, name: str) -> Path:
    """Where a file lies now: in its place, or on its way there. What is within a folder may be on its way with the whole of that."""
    for folder, inside in ((root, name), (root.parent, f"{root.name}/{name}")):
        if (home := _marked(folder)) is not None and (new := home / inside).exists():
            return new
    return root / name


def _marked(root: Path) -> Path | None:
    """The home that a folder's mark names, if there is one."""
    try:
        with (root / MARK).open("rb") as file:
            name = file.read(300).decode("ascii", "replace").strip()
    except (FileNotFoundError, NotADirectoryError):
        return None
    home = root / name
    return home if HOME.fullmatch(name) and home.is_dir() and not home.is_symlink() else None


def _is_marked(home: Path) -> bool:
    return _marked(home.parent) == home


@contextmanager
def replaced_files(root: str | Path, names: Collection[str]) -> Iterator[dict[str, Path]]:
    """Paths to write new files to, by their names in the folder, that take their places together when the block ends.

    Those that are not written stay as they are, and if the block raises all do; so does everything else in the folder. Raises StoreError,
    also for an OSError in the block; ConfigError for a name that is none of a file in a folder, or in one in it.
    """
    if wrong := [name for name in names if not all(re.match(r"[^./\\]", part) for part in name.split("/")) or name.count("/") > 1]:
        raise ConfigError(f"cannot write '{root}': no file in it can be named {choices(wrong)}")
    root = Path(os.path.realpath(root))
    try:
        if there := root.is_dir():
            _mend(root)
        elif root.exists():
            raise StoreError(f"cannot write '{root}': it is a file; give the path of a folder")
        elif not root.parent.is_dir():
            raise StoreError(f"cannot write '{root}': there is no folder '{root.parent}': make it first")
        with new_home(root / "files" if there else root, _is_marked) as home:
            for name in names:
                (home / name).parent.mkdir(exist_ok=True)
            yield {name: home / name for name in names}
            for folder in {home, *((home / name).parent for name in names)}:
                sync_folder(folder)
            if there or not _renamed(home, root):
                _commit(root, home)
    except OSError as error:
        if isinstance(error, StoreError):
            raise
        raise StoreError(f"cannot write '{root}': {error.strerror or error}; check the folder's permissions and free space") from error


def _renamed(home: Path, root: Path) -> bool:
    """Give a new folder its name; False if there is a folder of that name by now."""
    try:
        os.rename(home, root)
    except OSError:
        if not root.is_dir():
            raise
        return False
    sync_folder(root.parent)
    return True


def _commit(root: Path, made: Path) -> None:
    """Move the files of a home to their places, all or none."""
    with ExitStack() as stack:
        stack.enter_context(locked(root))
        _finish(root)
        home = made
        if made.parent != root:  # of a folder that was new when the writing began, and is not now
            home = stack.enter_context(new_home(root / "files", _is_marked))
            for entry in made.iterdir():
                os.rename(entry, home / entry.name)
        folders = []
        try:
            for inner in sorted(entry.name for entry in home.iterdir() if entry.is_dir()):
                with suppress(FileExistsError):
                    (root / inner).mkdir()
                    folders.append(root / inner)
                stack.enter_context(locked(root / inner))
                _finish(root / inner)
            for name in _names(home):
                _prepare(home / name, root / name)
            if _names(home):
                sync_folder(home)
                with atomic_file(root / MARK) as file:
                    file.write(home.name.encode())
        except BaseException:
            for folder in folders if not (root / MARK).exists() else ():
                with suppress(OSError):
                    folder.rmdir()
            raise
        _finish(root)


def _prepare(new: Path, place: Path) -> None:
    """Give a file the permissions of that whose place it takes; remove it if it is the same."""
    if place.is_dir():
        raise StoreError(f"cannot write '{place}': it is a folder; move it away")
    if not os.access(place.parent, os.W_OK) or place.parent.stat().st_dev != new.stat().st_dev:  # past the mark it would be too late
        raise StoreError(f"cannot write '{place}': its folder is closed to writing, or a link to another disk")
    if place.is_file():
        shutil.copymode(place, new)
        if _equal(new, place):
            new.unlink()


def _mend(root: Path) -> None:
    """Do what killed writers left to be done, for a folder and for the one it is in, and remove what they left."""
    if (root.parent / MARK).exists():
        with locked(root.parent):
            _finish(root.parent)
    with locked(root):
        _finish(root)
        remove_homes(root / "files")


def _finish(root: Path) -> None:
    """Move the files that a mark speaks of to their places. Nobody else must do so meanwhile."""
    if (home := _marked(root)) is not None:
        names = _names(home)
        for name in names:
            (root / name).parent.mkdir(exist_ok=True)
            os.replace(home / name, root / name)
        for folder in {root, *((root / name).parent for name in names)}:
            sync_folder(folder)
    with suppress(FileNotFoundError):
        (root / MARK).unlink()
    if home is not None:
        shutil.rmtree(home, ignore_errors=True)


def _names(home: Path) -> list[str]:
    """The names of the files in a home."""
    inner = [entry for entry in home.iterdir() if entry.is_dir() and not entry.is_symlink()]
    return sorted(
        entry.relative_to(home).as_posix() for folder in (home, *inner) for entry in folder.iterdir()
        if entry.is_file() and not entry.is_symlink()
    )  # fmt: skip


def _equal(left: Path, right: Path) -> bool:
    if left.stat().st_size != right.stat().st_size:
        return False
    with left.open("rb") as one, right.open("rb") as other:
        while chunk := one.read(1 << 20):
            if chunk != other.read(1 << 20):
                return False
    return True
