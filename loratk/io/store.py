"""The store contract: a file is a flat dict of arrays and a flat dict of strings, kept exactly.

Names, bytes, dtypes and shapes come back as they went in (byte order aside, which is always the machine's), nothing is
ever pickled, and every failure is a LoratkError. `StoreBase` does everything but the format itself.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, Protocol, Self

import numpy as np

from ..errors import ConfigError, FormatError, LoratkError, StoreError, UnknownNameError, choices
from .atomic import atomic_file
from .names import check_contents

BOMB_BYTES, BOMB_RATIO = 256 << 20, 1100  # deflate never reaches 1100: what does is data that are not there


@dataclass(frozen=True)
class Option:
    """An option of a store or format: what it is, and its value where none is given. Values from the command line come as text."""

    help: str
    default: Any = None


@dataclass(frozen=True)
class Contents:
    """What a file holds."""

    arrays: dict[str, np.ndarray]
    strings: dict[str, str]


class Reader(Protocol):
    """An open file: everything is known, nothing but the asked-for arrays is loaded."""

    @property
    def strings(self) -> dict[str, str]:
        """Every string of the file."""

    def names(self) -> list[str]:
        """The name of every array."""

    def info(self, name: str) -> tuple[tuple[int, ...], np.dtype]:
        """The shape and dtype of an array, without loading it."""

    def array(self, name: str) -> np.ndarray:
        """One array, loaded now and checked."""

    def verify(self) -> None:
        """Check the whole file now, as far as the format can. Raises FormatError."""


class Store(Protocol):
    """A file format."""

    @property
    def name(self) -> str:
        """Its key among the registered stores."""

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Ends of the file names that are written with it, such as ".h5"."""

    def sniff(self, path: Path) -> bool:
        """Whether the file's content looks like this format; never raises for a readable file."""

    def read(self, path: Path, names: Collection[str] | None = None) -> Contents:
        """Load the named arrays (None: all) and every string. UnknownNameError lists all unknown names."""

    def write(self, path: Path, arrays: Mapping[str, np.ndarray], strings: Mapping[str, str]) -> None:
        """Write the whole file, or leave the old one as it was and raise."""

    def open(self, path: Path) -> AbstractContextManager[Reader]:
        """The file for lazy reading."""


class LoadedReader:
    """A Reader over contents that are already in memory."""

    def __init__(self, contents: Contents) -> None:
        self.strings = contents.strings
        self._arrays = contents.arrays

    def names(self) -> list[str]:
        """The name of every array."""
        return list(self._arrays)

    def info(self, name: str) -> tuple[tuple[int, ...], np.dtype]:
        """The shape and dtype of an array."""
        array = self.array(name)
        return array.shape, array.dtype

    def array(self, name: str) -> np.ndarray:
        """One array."""
        check_known([name], self._arrays)
        return self._arrays[name]

    def verify(self) -> None:
        """Nothing: what is loaded has been checked."""


class StoreBase(ABC):
    """A Store, given `name`, `suffixes`, `magic` (the first bytes of every such file), `load` and `save`.

    A format that can be read piece by piece overrides `open` in place of `load`. One that can be written in several ways names them
    in `options` and takes them as arguments of its constructor, which has a value for each.
    """

    name: str
    suffixes: tuple[str, ...]
    magic: bytes = b""
    options: ClassVar[Mapping[str, Option]] = {}

    @abstractmethod
    def save(self, file: BinaryIO, arrays: Mapping[str, np.ndarray], strings: Mapping[str, str]) -> None:
        """Write everything to an empty, seekable binary file. Names and dtypes have been checked."""

    def configured(self, options: Mapping[str, Any]) -> Self:
        """A store that writes as these options say. Raises ConfigError for a value that makes no sense."""
        return type(self)(**options) if options else self

    def load(self, file: BinaryIO) -> Contents:
        """Read everything from a binary file. Any exception becomes a FormatError that quotes it."""
        raise NotImplementedError(f"{type(self).__name__} defines neither 'load' nor 'open'")

    def sniff(self, path: Path) -> bool:
        """Whether the file begins with `magic`."""
        with open_binary(path) as file:
            return bool(self.magic) and file.read(len(self.magic)) == self.magic

    @contextmanager
    def open(self, path: Path) -> Iterator[Reader]:
        """The file for lazy reading; as a default, loaded whole."""
        with open_binary(path) as file, translated(path, self.name):
            contents = self.load(file)
        yield LoadedReader(contents)

    def read(self, path: Path, names: Collection[str] | None = None) -> Contents:
        """Load the named arrays (None: all) and every string."""
        with self.open(path) as reader:
            known = reader.names()
            if names is None:
                reader.verify()
            else:
                check_known(names, known)
            wanted = known if names is None else [name for name in known if name in set(names)]
            return Contents({name: reader.array(name) for name in wanted}, dict(reader.strings))

    def write(self, path: Path, arrays: Mapping[str, np.ndarray], strings: Mapping[str, str]) -> None:
        """Write the whole file, or leave the old one as it was and raise."""
        check_contents(arrays, strings)
        with atomic_file(path) as file:
            self.save(file, arrays, strings)


def view(reader: Reader, name: str) -> np.ndarray:
    """One array for reading only, without a copy where the reader has a `view` that can do so."""
    return getattr(reader, "view", reader.array)(name)


def open_binary(path: Path) -> BinaryIO:
    """Open a file for reading. Raises StoreError where there is no such file, or no permission."""
    try:
        return Path(path).open("rb")
    except OSError as error:
        raise StoreError(f"cannot read '{path}': {error.strerror or error}; check the path and its permissions") from error


@contextmanager
def translated(path: Path, store: str) -> Iterator[None]:
    """Turn whatever a file library raises over a broken file into a FormatError."""
    try:
        yield
    except LoratkError:
        raise
    except Exception as error:
        said = str(error).strip("'\"") or type(error).__name__
        raise FormatError(
            f"cannot read '{path}' with the store {store!r}: {said}. The file is damaged or cut short (get a new copy), "
            f"or it is of another format (name its store)"
        ) from error


COMPRESSION = Option("compress arrays with deflate: 0 (not at all) to 9 (smallest)", 0)


def compression_level(value: object) -> int:
    """A level from 0 to 9, given as a number or its text. Raises ConfigError."""
    if isinstance(value, bool) or str(value) not in "0123456789" or len(str(value)) != 1:
        raise ConfigError(f"compression must be a whole number from 0 (none) to 9 (smallest), found {value!r}")
    return int(str(value))


def bomb_fault(declared: int, stored: int) -> str | None:
    """Whether arrays of so many bytes cannot come from so many stored ones, or None. What is read is bounded by this."""
    if declared > BOMB_BYTES and declared > BOMB_RATIO * stored:
        return f"declares {declared} bytes, but stores {stored}: a bomb"
    return None


def check_known(names: Iterable[str], known: Collection[str]) -> None:
    """Raises UnknownNameError that lists every name which is not known."""
    known = known if isinstance(known, Mapping) else set(known)  # asked for each array of a file, a set would cost its number squared
    unknown = [name for name in names if name not in known]
    if unknown:
        listed = choices(known) if len(known) <= 20 else f"{len(known)} arrays, among them {choices(sorted(known)[:5])}"
        raise UnknownNameError(f"no array named {choices(unknown)}; the file holds {listed}")
