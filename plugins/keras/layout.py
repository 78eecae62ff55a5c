"""The layout of a keras-hub `.lora.h5`: which datasets are where, checked as a whole before one is loaded.

/lora/vars/rank                      whole number
/lora/<layer>/vars/lora_kernel_a     (*kernel axes but the last, rank)
/lora/<layer>/vars/lora_kernel_b     (rank, last axis of the kernel)
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from .layers import INDEX

RANK = "lora/vars/rank"
_FACTOR = re.compile(r"lora/([^/]+)/vars/lora_kernel_([ab])")
_MAX_AXES = 16


class Pair(NamedTuple):
    """The factors of one layer, and the names of those that the file holds as bfloat16."""

    a: np.ndarray
    b: np.ndarray
    bfloat16: tuple[str, ...] = ()


def factor(index: int, half: str) -> str:
    """The name of a dataset: half "a" or "b"."""
    return f"lora/{index}/vars/lora_kernel_{half}"


def looks_like(names: Collection[str]) -> bool:
    """Whether arrays of these names are such a file."""
    return RANK in names or any(_FACTOR.fullmatch(name) for name in names)


class Layout:
    """What the names and shapes in a file say: `layers` is {number: {"a", "b": full name}}, `rank` the file's. Faults go to `faults`."""

    def __init__(self, reader: Any, may_miss: Callable[[str], bool] = lambda name: False) -> None:
        self.layers: dict[int, dict[str, str]] = {}
        self.faults: list[str] = []
        self.notes: list[str] = []
        self.rank: int | None = None
        self._reader = reader
        names = reader.names()
        outside = [name for name in names if not name.startswith(("lora/", "loratk/"))]
        if outside:
            self.notes.append(f"{len(outside)} arrays outside of /lora are left alone, such as {outside[0]!r}")
        for name in names:
            if name.startswith("lora/") and name != RANK:
                self._place(name)
        self._pair(may_miss)
        self._read_rank(names, may_miss)
        self.faults += [fault for index, halves in sorted(self.layers.items()) for fault in self._shape_faults(index, halves)]
        if not self.layers and not self.faults:
            self.faults.append("it holds no factors (lora/<layer>/vars/lora_kernel_a and _b)")

    def pair(self, index: int) -> Pair:
        """The factors of a layer, loaded now."""
        halves = self.layers[index]
        marked = tuple(f"lora_{half.upper()}" for half in "ab" if halves[half] in getattr(self._reader, "bfloat16", ()))
        return Pair(self._reader.array(halves["a"]), self._reader.array(halves["b"]), marked)

    def kernels(self) -> dict[int, tuple[int, ...]]:
        """The shape of each layer's whole kernel."""
        return {index: (*self._shape(halves["a"])[:-1], self._shape(halves["b"])[-1]) for index, halves in sorted(self.layers.items())}

    def _shape(self, name: str) -> tuple[int, ...]:
        return self._reader.info(name)[0]

    def _place(self, name: str) -> None:
        found = _FACTOR.fullmatch(name)
        if found is None:
            self.faults.append(f"unexpected array {name!r}: an update in it would be lost")
        elif not INDEX.fullmatch(found[1]):
            self.faults.append(f"array {name!r}: {found[1]!r} is no layer number")
        else:
            self.layers.setdefault(int(found[1]), {})[found[2]] = name

    def _pair(self, may_miss: Callable[[str], bool]) -> None:
        for index in sorted(self.layers):
            for half in {"a", "b"} - set(self.layers[index]):
                missing = factor(index, half)
                if may_miss(missing):
                    self.notes.append(f"layer {index} is left out: {missing!r} is missing, which was allowed")
                else:
                    self.faults.append(f"array {missing!r} is missing, whose other half is there")
                del self.layers[index]

    def _read_rank(self, names: Collection[str], may_miss: Callable[[str], bool]) -> None:
        if RANK not in names:
            if not may_miss(RANK):
                self.faults.append(f"array {RANK!r} is missing, without which keras-hub does not load it")
                return
            self.rank = next((self._shape(halves["a"])[-1] for halves in self.layers.values() if self._shape(halves["a"])), None)
            self.notes.append(f"{RANK!r} is missing, which was allowed: the rank is that of the factors, {self.rank}")
            return
        shape, dtype = self._reader.info(RANK)
        value = self._reader.array(RANK) if shape == () else None
        if value is None or dtype.kind not in "iu" or not 0 < int(value) < 1 << 31:
            held = f"{dtype} {shape}" if value is None else repr(value.item())
            self.faults.append(f"{RANK!r} must be one whole number from 1 up, found {held}")
        else:
            self.rank = int(value)

    def _shape_faults(self, index: int, halves: Mapping[str, str]) -> Iterator[str]:
        (a, kind_a), (b, kind_b) = (self._reader.info(halves[half]) for half in "ab")
        where = f"layer {index}"
        for half, kind in (("a", kind_a), ("b", kind_b)):
            if kind.kind != "f":
                yield f"{where}: lora_kernel_{half} must be of floating-point numbers, found {kind}"
        if not 2 <= len(a) <= _MAX_AXES or len(b) != 2 or 0 in a or 0 in b:
            yield f"{where}: lora_kernel_a must have 2 to {_MAX_AXES} axes and lora_kernel_b 2, none of length 0, found {a} and {b}"
        elif a[-1] != b[0] or (self.rank is not None and self.rank != b[0]):
            rank = "unknown" if self.rank is None else self.rank
            yield f"{where}: the rank of the file is {rank}, but lora_kernel_a is {a} and lora_kernel_b {b}"
