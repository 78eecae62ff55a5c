"""What a case is: one piece of work by loratk, by PEFT, and the least it could cost."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Step = Callable[[], object]
WAYS = ("ours", "peft", "floor by numpy", "floor by torch")


@dataclass(frozen=True)
class Case(ABC):
    """A model and the rows it works on. Model and step are made apart, so that one model can take steps of several sizes.

    Libraries are imported where they are used: a process that times one of them has no other loaded.
    """

    name: str
    rows: int
    threads: int | None = None  # None: as many as the machine has
    beside_peer: bool = True

    @abstractmethod
    def ours_model(self) -> Any: ...

    @abstractmethod
    def ours_step(self, model: Any, rows: int) -> Step: ...

    @abstractmethod
    def peft_model(self) -> Any: ...

    @abstractmethod
    def peft_step(self, model: Any, rows: int) -> Step: ...

    @abstractmethod
    def floor(self, library: str) -> Step:
        """The least a step could cost, by "numpy" or by "torch"."""

    def step(self, way: str) -> Step:
        """One step of this case, one of WAYS."""
        if way == "ours":
            return self.ours_step(self.ours_model(), self.rows)
        if way == "peft":
            return self.peft_step(self.peft_model(), self.rows)
        return self.floor(way.removeprefix("floor by "))


def normal(seed: int, *shape: int) -> np.ndarray:
    """Standard normal float32 numbers."""
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def once(model: Any, make: Callable[[], Any]) -> Any:
    """The optimiser of a model, made once: steps of several sizes share what it remembers."""
    if "_optimiser" not in vars(model):
        vars(model)["_optimiser"] = make()
    return vars(model)["_optimiser"]
