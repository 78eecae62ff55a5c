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
from typing import BinaryIO, Protocol

import numpy as np

from ..errors import FormatError, LoratkError, StoreError, UnknownNameError, choices
from .atomic import atomic_file
from .names import check_contents


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

    A format that can be read piece by piece overrides `open` in place of `load`.
    """

    name: str
    suffixes: tuple[str, ...]
    magic: bytes = b""

    @abstractmethod
    def save(self, file: BinaryIO, arrays: Mapping[str, np.ndarray], strings: Mapping[str, str]) -> None:
        """Write everything to an empty, seekable binary file. Names and dtypes have been checked."""

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


def check_known(names: Iterable[str], known: Collection[str]) -> None:
    """Raises UnknownNameError that lists every name which is not known."""
    known = set(known)
    unknown = [name for name in names if name not in known]
    if unknown:
        listed = choices(known) if len(known) <= 20 else f"{len(known)} arrays, among them {choices(sorted(known)[:5])}"
        raise UnknownNameError(f"no array named {choices(unknown)}; the file holds {listed}")
