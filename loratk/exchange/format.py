"""The contract of an adapter format: how another tool keeps adapters, to and from `AdapterState`.

A format owns a layout: names, orientation, where alpha is kept. It reads into plain states in loratk's orientation, tells what it had to
decide on the way, and refuses by name what it cannot express. The container below it may be a store (safetensors, HDF5) or its own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np

from ..errors import ConfigError, choices
from ..io.store import Option
from .state import AdapterState

FEATURES = {
    "names": "module names",
    "several": "several adapters in one file",
    "alpha": "alpha",
    "ranks": "a rank and an alpha for each module",
    "rslora": "rank-stabilised scaling",
    "conv": "convolutions",
    "embedding": "embeddings",
    "einsum": "kernels of more axes (EinsumDense)",
    "experts": "stacks of experts",
    "dora": "DoRA magnitudes",
    "bias": "changes of biases",
    "full": "whole modules beside the adapter",
    "methods": "other methods (LoHa, LoKr, VeRA, ...)",
    "bfloat16": "bfloat16",
    "metadata": "metadata",
    "fingerprint": "the base's fingerprint",
}
"""What a format may carry; `AdapterFormat.carries` answers each of them."""


class Base(Protocol):
    """The base model's weights, as far as a format needs them: names to resolve, weights where an update depends on them."""

    @property
    def path(self) -> str:
        """Where they are."""

    def modules(self) -> list[str]:
        """The dotted path of every module that has a weight."""

    def shape(self, module: str) -> tuple[int, ...]:
        """The shape of a module's weight as it is stored, without loading it."""

    def weight(self, module: str) -> np.ndarray:
        """A module's weight as it acts: (d, k), input first, float32 or float64. UnknownNameError lists what is near."""

    def bias(self, module: str) -> np.ndarray | None:
        """A module's bias (k,), float32 or float64; None where it has none."""


@dataclass(frozen=True)
class Request:
    """What is asked of a format beyond the path.

    options: the format's own, by name. base: the base's weights, if given. adapters: which of several (None: all).
    allow_missing: tensors, by their name in the file, that may be absent though the file's config promises them; ask `may_miss`.
    bake: what cannot be expressed exactly is written as the nearest thing that can, with its error among the notes.
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    base: Base | None = None
    adapters: Collection[str] | None = None
    allow_missing: Collection[str] = ()
    bake: bool = False
    missed: set[str] = field(default_factory=set, compare=False, repr=False)

    def may_miss(self, *names: str) -> bool:
        """Whether what was looked for and is not there may be absent, all of it. What is allowed counts as missed then.

        To allow what was not missed is an error of who asked, as is what a format never asks about.
        """
        self.missed.update(name for name in names if name in self.allow_missing)
        return all(name in self.allow_missing for name in names)


@dataclass(frozen=True)
class Reading:
    """What was read, and a line for each thing that had to be decided: where alpha came from, what was stripped from names."""

    states: list[AdapterState]
    notes: list[str] = field(default_factory=list)


class AdapterFormat(ABC):
    """A format. A subclass gives the class variables and the functions below; one that only reads leaves `write` out."""

    name: ClassVar[str]
    """Its key among the registered formats: what `--to` and `--from` say."""
    title: ClassVar[str]
    """What people call it, such as "PEFT directory"."""
    suffixes: ClassVar[tuple[str, ...]] = ()
    """Ends of file names that are written with it; of several formats with one suffix, `--to` has to choose."""
    folder: ClassVar[bool] = False
    """Whether it is a folder of files."""
    carries: ClassVar[Mapping[str, str]]
    """For each of FEATURES: "yes", "no", or in a few words how (such as "folded into B")."""
    options: ClassVar[Mapping[str, Option]] = {}
    """Its own options, by name."""
    own: ClassVar[bool] = False
    """Whether it is loratk's own layout, which keeps first factors and gains apart; for any other they are joined to the factors."""

    @abstractmethod
    def detect(self, path: Path) -> str | None:
        """The evidence in the content that the file or folder is of this format, such as "has the dataset /lora/vars/rank"; else None.

        Never the file's name; reads little; raises nothing over a broken file but StoreError where it cannot be opened.
        """

    @abstractmethod
    def adapters(self, path: Path) -> list[str]:
        """The names of the adapters it holds; `["default"]` where the format has no names. No tensor is loaded."""

    @abstractmethod
    def read(self, path: Path, request: Request) -> Reading:
        """Its adapters. Raises FormatError with every fault of the file at once: broken, missing, unexpected, of wrong shape."""

    def write(self, path: Path, states: Sequence[AdapterState], request: Request) -> list[str]:
        """Write the states, atomically, and return notes as in `Reading`.

        The states have been checked. Raises ConfigError with everything that the format cannot express, and writes nothing then.
        """
        raise ConfigError(f"loratk reads {self.title}, but does not write it; choose another format with --to.")

    def unheld(self, state: AdapterState) -> list[str]:
        """The modules of other methods than LoRA and DoRA that it cannot write as they are: what `bake` makes LoRA.

        Asked where `carries["methods"]` is not "no"; a format that writes some methods only, or one alone at a time, says here which.
        """
        return []

    @property
    def writable(self) -> bool:
        """Whether it can be written."""
        return type(self).write is not AdapterFormat.write

    def option(self, request: Request, name: str) -> Any:
        """The value of one of its options. A misspelt one raises ConfigError."""
        if unknown := set(request.options) - set(self.options):
            raise ConfigError(f"The format {self.name!r} has no option {choices(unknown)}; its options: {choices(self.options)}.")
        return request.options.get(name, self.options[name].default)
