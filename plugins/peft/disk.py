"""A folder of adapters on the disk: where each lies, and how several files of it change at once.

An adapter's two files cannot take their names in one step. So new files are written beside the old ones under names of their own, then
one file, the mark, says that they count, and only then they take the others' places. Up to the mark a reader has all of the old adapters,
from it on all of the new ones, whether or not the renaming is through; what is left of it is done by the next write. PEFT, which knows of
no mark, can meet the files of two writes in the moment between the renamings. A folder that is not there yet appears in one step.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from loratk.errors import FormatError, StoreError
from loratk.io import atomic_file
from loratk.io.atomic import SUFFIX
from loratk.io.safetensors import SafetensorsReader, open_safetensors

from .config import NAME as CONFIG

TENSORS = "adapter_model.safetensors"
PICKLE = "adapter_model.bin"
FILES = (TENSORS, CONFIG)
MARK = ".loratk-peft-commit"
DEFAULT = "default"
TRIES = 20
T = TypeVar("T")


def staged(path: Path) -> Path:
    """The name of a file that is to take the place of another."""
    return path.with_name(f".{path.name}.loratk-new")


def current(root: Path, path: Path) -> Path:
    """Where the content of a file of the folder lies now: under its own name, or still under the staged one if the mark is there."""
    return new if (root / MARK).exists() and (new := staged(path)).exists() else path


def now(root: Path, path: Path, read: Callable[[Path], T]) -> T:
    """What `read` makes of a file where it lies now; again if a write has moved it meanwhile."""
    for _ in range(TRIES):
        place = current(root, path)
        try:
            return read(place)
        except OSError:
            if current(root, path) == place:
                raise
    raise StoreError(f"cannot read '{path}': it was written again and again meanwhile; try once more")


def _is_there(root: Path, path: Path) -> bool:
    """Whether a file is there; asked twice, as it may take its place just between two looks."""
    return path.is_file() or current(root, path).is_file() or path.is_file()


def adapters(root: Path) -> dict[str, Path]:
    """The folder of each adapter by its name: the root is `default`, each folder in it with a config is named after itself."""
    found = {DEFAULT: root} if _is_there(root, root / CONFIG) else {}
    try:
        inner = sorted(entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    except OSError as error:
        raise StoreError(f"cannot read '{root}': {error.strerror or error}; check the path and its permissions") from error
    for entry in inner:
        if _is_there(root, entry / CONFIG):
            found.setdefault(entry.name, entry)
    return found


@contextmanager
def opened(root: Path, folder: Path, read_config: Callable[[Path], object]) -> Iterator[tuple[object, SafetensorsReader]]:
    """The config and the open tensors of one adapter, of one and the same write. Raises FormatError, StoreError."""
    for attempt in range(TRIES):
        before = _state(root, folder)
        try:
            config = read_config(current(root, folder / CONFIG))
            tensors = open_safetensors(_tensors(root, folder))
            file = tensors.__enter__()
        except (FormatError, StoreError):
            if attempt + 1 < TRIES and _state(root, folder) != before:
                continue
            raise
        if _state(root, folder) == before:
            try:
                yield config, file
            finally:
                tensors.__exit__(None, None, None)
            return
        tensors.__exit__(None, None, None)
    raise StoreError(f"cannot read '{folder}': it was written again and again meanwhile; try once more")


def _tensors(root: Path, folder: Path) -> Path:
    path = current(root, folder / TENSORS)
    if not path.exists():
        if (folder / PICKLE).exists():
            raise FormatError(
                f"'{folder}' has its tensors in {PICKLE}, a Python pickle, which can run code when it is loaded; loratk takes it only if "
                f"asked, with a reader that allows nothing but tensors: --from loralib and the path of {PICKLE}. "
                "Or save it with safe_serialization=True"
            )
        raise FormatError(f"'{folder}' has a {CONFIG}, but no {TENSORS}; get the whole folder")
    return path


def _state(root: Path, folder: Path) -> list[object]:
    """What changes whenever a write goes on."""
    seen: list[object] = []
    for path in (root / MARK, *(folder / name for name in FILES), *(staged(folder / name) for name in FILES)):
        try:
            stat = path.stat()
            seen.append((stat.st_ino, stat.st_mtime_ns, stat.st_size))
        except OSError:
            seen.append(None)
    return seen


@contextmanager
def replaced(root: Path, names: Mapping[str, str]) -> Iterator[dict[str, dict[str, Path]]]:
    """Paths to write new files to, `[adapter][file name]`, that take their places together when the block ends.

    `names` are the folders in the root, by adapter ("" for the root itself). OSError becomes StoreError; nothing has changed then.
    """
    try:
        if root.exists():
            with _in_place(root, names) as paths:
                yield paths
        else:
            with _as_new(root, names) as paths:
                yield paths
    except OSError as error:
        if isinstance(error, StoreError):
            raise
        raise StoreError(f"cannot write '{root}': {error.strerror or error}; check the folder's permissions and free space") from error


@contextmanager
def _as_new(root: Path, names: Mapping[str, str]) -> Iterator[dict[str, dict[str, Path]]]:
    """The whole folder, made under another name and then renamed."""
    if not root.parent.is_dir():
        raise StoreError(f"cannot write '{root}': there is no folder '{root.parent}': make it first")
    home = root.with_name(f".{root.name}{SUFFIX}")
    shutil.rmtree(home, ignore_errors=True)  # of a process that was killed
    try:
        paths = {}
        for adapter, inner in names.items():
            (home / inner).mkdir(parents=True, exist_ok=True)
            paths[adapter] = {name: home / inner / name for name in FILES}
        yield paths
        for folder in {home, *(home / inner for inner in names.values())}:
            _sync(folder)
        os.rename(home, root)
    finally:
        shutil.rmtree(home, ignore_errors=True)
    _sync(root.parent)


@contextmanager
def _in_place(root: Path, names: Mapping[str, str]) -> Iterator[dict[str, dict[str, Path]]]:
    if not root.is_dir():
        raise StoreError(f"cannot write '{root}': it is a file; give the path of a folder")
    finish(root)
    made: list[Path] = []
    places = [root / inner / name for inner in names.values() for name in FILES]
    committed = False
    try:
        for inner in names.values():
            if not (root / inner).is_dir():
                (root / inner).mkdir()
                made.append(root / inner)
        yield {adapter: {name: staged(root / inner / name) for name in FILES} for adapter, inner in names.items()}
        for place in places:
            if place.is_file():
                shutil.copymode(place, staged(place))
            if _equal(staged(place), place):
                staged(place).unlink()  # one renaming less for a reader that knows of no mark
        if any(staged(place).exists() for place in places):
            with atomic_file(root / MARK) as file:
                file.write(b"The files here named .<name>.loratk-new take the places of <name>.\n")
        committed = True
    finally:
        if not committed and not (root / MARK).exists():
            for place in places:
                with suppress(OSError):
                    staged(place).unlink()
            for folder in made:
                with suppress(OSError):
                    folder.rmdir()
    finish(root)


def finish(root: Path) -> None:
    """Put staged files in their places if the mark is there, else delete them: what a process left behind that was killed."""
    marked = (root / MARK).exists()
    for folder in (root, *(entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))):
        for name in FILES:
            new = staged(folder / name)
            with suppress(FileNotFoundError):
                if marked:
                    os.replace(new, folder / name)
                else:
                    new.unlink()
        if marked:
            _sync(folder)
    with suppress(FileNotFoundError):
        (root / MARK).unlink()


def _equal(left: Path, right: Path) -> bool:
    if not right.is_file() or left.stat().st_size != right.stat().st_size:
        return False
    with left.open("rb") as one, right.open("rb") as other:
        while chunk := one.read(1 << 20):
            if chunk != other.read(1 << 20):
                return False
    return True


def _sync(folder: Path) -> None:
    with suppress(OSError):  # not every system lets a folder be opened
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
