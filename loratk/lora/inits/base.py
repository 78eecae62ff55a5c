"""What an initialisation is given, and what it gives."""

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import numpy as np

from ...errors import choices

NEEDS = ("inputs", "gradients")


@dataclass(frozen=True)
class Start:
    """One matrix at the beginning: its weight W (d, k), the adapter's rank and scaling, a generator, and the init's own options.

    `evidence` is what was seen of the layer in data: for an init that `needs` "inputs" what its `gather` made of them, for "gradients" the
    mean gradient of the loss (d, k), float64; None where it needs nothing.
    """

    weight: np.ndarray
    rank: int
    scaling: float
    rng: np.random.Generator
    options: Mapping[str, Any] = field(default_factory=dict)
    evidence: Any = None


@dataclass(frozen=True)
class Started:
    """The first factors: lora_A (d, r) and lora_B (r, k)."""

    lora_A: np.ndarray
    lora_B: np.ndarray


class Gatherer(Protocol):
    """What collects the inputs of one layer, of bounded size whatever the data."""

    @abstractmethod
    def add(self, rows: np.ndarray) -> None:
        """Inputs as the rows that meet the weight: (n, d), float64, finite; the layer's product is rows @ W."""


@dataclass(frozen=True)
class Seen:
    """A layer of which data was seen: the shape of its weight, the rank that the config gives it, and the evidence."""

    shape: tuple[int, int]
    rank: int
    evidence: Any


class Init:
    """A way for the factors of an update A B to start. A subclass gives its `name`, `start`, and its options with defaults.

    The model computes at first what it computed without the adapter: either B (or A B) is 0, or the init `moves_base`. Then
    scaling A B of the start is taken off the weight, as long as the adapter is active; the first factors stay with the adapter as
    `initial_A` and `initial_B`, so that the weight itself never changes and the update is scaling (A B - initial_A initial_B).
    """

    name: ClassVar[str]
    options: ClassVar[Mapping[str, Any]] = {}
    """Its own options and their defaults."""
    moves_base: ClassVar[bool] = False
    """Whether the first product is taken off the weight."""
    needs: ClassVar[str | None] = None
    """What must be seen in data first: "inputs" of the layers, "gradients" of the loss for the weights, or None."""

    def option_faults(self, options: Mapping[str, Any]) -> Iterator[str]:
        """What is wrong with the options of a config, a line each."""
        for name in options:
            if name not in self.options:
                yield f"the init {self.name!r} has no option {name!r}; its options: {choices(self.options)}"

    def layer_faults(self, d: int, k: int, rank: int, scaling: float, options: Mapping[str, Any]) -> Iterator[str]:
        """Why it cannot start an adapter of a (d, k) weight, a line each; `options` are complete."""
        yield from ()

    def gather(self, d: int, k: int, rank: int, options: Mapping[str, Any]) -> Gatherer:
        """For an init that `needs` "inputs": what collects those of one layer, and is its evidence afterwards."""
        raise NotImplementedError

    def ranks(self, seen: Mapping[str, Seen], options: Mapping[str, Any]) -> Mapping[str, int]:
        """From the evidence of all layers that it starts, by name: other ranks for some, 0 for no adapter; the scaling stays."""
        return {}

    def start(self, start: Start) -> Started:
        """The first factors, in the weight's dtype; `start.options` are complete."""
        raise NotImplementedError

    def frozen(self, options: Mapping[str, Any]) -> frozenset[str]:
        """Which of the two factors do not train under these options."""
        return frozenset()


def started(start: Start, a: np.ndarray, b: np.ndarray | None = None) -> Started:
    """Factors in the weight's dtype; without B it is 0."""
    dtype = start.weight.dtype
    b = np.zeros((start.rank, start.weight.shape[1])) if b is None else b
    return Started(np.ascontiguousarray(a, dtype), np.ascontiguousarray(b, dtype))
