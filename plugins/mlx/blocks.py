"""Which modules mlx-lm makes adapters of: keys are paths within a block of the last num_layers, or whole paths.

Source: mlx-lm, tuner/utils.py, linear_to_lora_layers.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from loratk.errors import choices

from .config import MlxConfig


class Place(NamedTuple):
    """A module in a block: what stands before the block's number, the number, and the path within the block."""

    stem: str
    number: int
    inner: str


def place(module: str) -> Place | None:
    """Where a module lies among the blocks, by the first number in its path; None beside them."""
    parts = module.split(".")
    for at, part in enumerate(parts[:-1]):
        if at and part.isascii() and part.isdecimal() and len(part) < 10 and str(int(part)) == part:
            return Place(".".join(parts[:at]), int(part), ".".join(parts[at + 1 :]))
    return None


def spellings(module: str) -> tuple[str, ...]:
    """The keys that mean a module: its path, and that within its block."""
    where = place(module)
    return (module,) if where is None else (module, where.inner)


@dataclass(frozen=True)
class Chosen:
    """What a config means in a model whose modules are known, at least those that have adapters. `last`: the last block by its stem."""

    config: MlxConfig
    last: dict[str, int]

    @classmethod
    def among(cls, config: MlxConfig, modules: Iterable[str]) -> Chosen:
        """A config in a model with these modules."""
        last: dict[str, int] = {}
        for module in modules:
            if (where := place(module)) is not None:
                last[where.stem] = max(last.get(where.stem, 0), where.number)
        return cls(config, last)

    def why_not(self, module: str) -> str | None:
        """Why mlx-lm makes no adapter of a module, or None if it does."""
        keys, where = self.config.keys, place(module)
        if keys is not None and module in keys:
            return None
        if where is None:
            return "it lies in no block, and is not among the keys"
        if keys is not None and where.inner not in keys:
            return f"neither it nor {where.inner!r} is among the keys"
        layers, last = self.config.num_layers, self.last.get(where.stem, where.number)
        if 0 < layers <= last - where.number:
            return f"num_layers {layers} means the blocks from {last - layers + 1} on"
        return None

    def faults(self, modules: Collection[str], may_miss: Callable[[str], bool]) -> Iterator[str]:
        """What these modules, which have adapters, and the config do not agree about. `may_miss` tells which keys may mean none."""
        for module in sorted(modules):
            if (why := self.why_not(module)) is not None:
                yield f"module {module!r} has tensors, but mlx-lm makes no adapter of it: {why}"
        found = {name for module in modules for name in spellings(module)}
        if idle := [key for key in self.config.keys or () if key not in found and not may_miss(key)]:
            yield f"the keys {choices(idle)} are promised, but no tensor is there for them"

    def holes(self, modules: Collection[str]) -> dict[str, list[int]]:
        """By path within a block, the blocks between the first that is meant and the last that have no adapter there though others do."""
        rows: dict[tuple[str, str], set[int]] = {}
        for module in modules:
            if (where := place(module)) is not None and module not in (self.config.keys or ()):
                rows.setdefault((where.stem, where.inner), set()).add(where.number)
        holes = {}
        for (stem, inner), numbers in rows.items():
            last, layers = self.last[stem], self.config.num_layers
            missing = set(range(max(last - layers + 1, 0) if layers > 0 else 0, last + 1)) - numbers
            if missing:
                holes[f"{stem}.N.{inner}"] = sorted(missing)
        return holes


def choose(modules: Collection[str], count: int | None) -> tuple[int, list[str], str]:
    """num_layers and keys under which mlx-lm makes adapters of exactly these modules, in a model of `count` blocks if known; and why so.

    Where the last blocks have the same modules and no others any, keys are paths within a block, which every reader of mlx adapters
    takes; else they are whole paths.
    """
    places = {module: place(module) for module in modules}
    beside = sorted(module for module, where in places.items() if where is None)
    inside = [where for where in places.values() if where is not None]
    rows: dict[int, set[str]] = {}
    for where in inside:
        rows.setdefault(where.number, set()).add(where.inner)
    first, last = min(rows, default=0), max(rows, default=0)
    alike = (
        len({frozenset(row) for row in rows.values()}) == 1 and len(rows) == last - first + 1 and len({where.stem for where in inside}) == 1
    )
    if alike and count == last + 1:
        layers = -1 if first == 0 else last - first + 1
        return (
            layers,
            [*sorted(rows[last]), *beside],
            f"keys are paths within a block, in {'all' if first == 0 else f'the last {layers}'} blocks",
        )
    hint = "; say how many blocks the base has (num_blocks) for paths within a block" if alike and count is None else ""
    return -1, sorted(modules), f"keys are whole paths, which mlx-lm takes, but not every other reader of its adapters{hint}"
