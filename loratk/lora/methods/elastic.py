"""LoRA whose rank follows the energy of its update."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ..settings import is_integer, is_number
from .adalora import steps_faults
from .lora import Lora

if TYPE_CHECKING:
    from ..control import Controller
    from ..model import LoraModel


class Elastic(Lora):
    """LoRA that finds the rank of each layer while it trains: the config's rank is the largest it may take.

    Every so many steps a layer keeps as many singular directions of its update as hold the share `energy` of its squared norm (the
    cumulative rule of kohya's resize script), the largest, and where that is all it has, it gets one more. What it does not use are
    columns of A and rows of B that are zero, which no gradient moves: the update is LoRA's, and so is the file. The scaling is that of
    the largest rank throughout. See `loratk.lora.energy_rank`; `LoraModel.compact` cuts what is not used.

    start_rank: the rank to begin with; None for half of the largest. min_rank: which is never gone below. energy: the share, in (0, 1].
    every: steps from one look to the next. tfinal: for how many steps at last the rank grows no more; below 1 the share of all steps,
    where their number is known.
    """

    name, form, takes_init = "elastic", "lora", False
    options: ClassVar[Mapping[str, Any]] = {"start_rank": None, "min_rank": 1, "energy": 0.99, "every": 20, "tfinal": 0.2}

    def option_faults(self, options: Mapping[str, Any]) -> Iterator[str]:
        """Unknown names and values out of range."""
        yield from super().option_faults(options)
        values = {**self.options, **options}
        for name in ("start_rank", "min_rank", "every"):
            if not (is_integer(values[name]) and values[name] >= 1) and (name, values[name]) != ("start_rank", None):
                yield f"{name} of the method 'elastic' must be a whole number of at least 1, found {values[name]!r}"
        if not is_number(values["energy"]) or not 0 < values["energy"] <= 1:
            yield f"energy of the method 'elastic' must be a number in (0, 1], found {values['energy']!r}"
        yield from steps_faults(self.name, "tfinal", values["tfinal"])

    def initial(self, weight: np.ndarray, rank: int, rng: np.random.Generator, options: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """lora_A (d, r) random in the columns that are used at first, else zero; lora_B (r, k) zero."""
        values = super().initial(weight, rank, rng, options)
        values["lora_A"][:, first_rank(rank, {**self.options, **options}) :] = 0
        return values

    def compact(self, parameters: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], int] | None:
        """The ranks whose column of A and row of B are both not zero."""
        a, b = parameters["lora_A"], parameters["lora_B"]
        ranks = np.flatnonzero(a.any(axis=0) & b.any(axis=1))
        return None if len(ranks) == len(b) else (self.take(parameters, ranks), len(ranks))

    def controller(self, model: "LoraModel", adapter: str, steps: int | None) -> "Controller | None":
        """The looks at the energy."""
        from ..energy_rank import EnergyRank

        return EnergyRank(model, adapter, self, steps)


def first_rank(rank: int, options: Mapping[str, Any]) -> int:
    """How many of the ranks are used at first."""
    start = options["start_rank"] if options["start_rank"] is not None else max(options["min_rank"], -(-rank // 2))
    return int(min(start, rank))
