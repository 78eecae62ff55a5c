"""What an initialisation is given, and what it gives."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from ...errors import choices


@dataclass(frozen=True)
class Start:
    """One matrix at the beginning: its weight W (d, k), the adapter's rank and scaling, a generator, and the init's own options.

    `evidence` is what was seen of the layer in data, of the kind that the init `needs`; None where it needs nothing.
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
    """What must be seen in data first: "inputs" of the layers, "gradients" of the weights, or None."""

    def option_faults(self, options: Mapping[str, Any]) -> Iterator[str]:
        """What is wrong with the options of a config, a line each."""
        for name in options:
            if name not in self.options:
                yield f"the init {self.name!r} has no option {name!r}; its options: {choices(self.options)}"

    def start(self, start: Start) -> Started:
        """The first factors, in the weight's dtype; `start.options` are complete."""
        raise NotImplementedError

    def frozen(self, options: Mapping[str, Any]) -> frozenset[str]:
        """Which of the two factors do not train under these options."""
        return frozenset()
