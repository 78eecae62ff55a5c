"""DyLoRA around the steps of training: which rank a step trains."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from ..errors import ConfigError
from .control import Controller
from .parts import options_of, trained_by

if TYPE_CHECKING:
    from .methods import Method
    from .model import LoraModel


class DrawnRank(Controller):
    """One rank for all layers of an adapter in each step, drawn evenly. A layer of a smaller rank takes all of its own.

    It comes from the generator of the adapter's first layer, so that a checkpoint of the model is all it needs.
    """

    def __init__(self, model: "LoraModel", adapter: str, method: "Method") -> None:
        self._find = lambda: trained_by(model, adapter, method)
        options = options_of(self._find(), method)
        self.low, self.last, self.rank = int(str(options["min_rank"])), options["update"] == "last", 0
        self._largest()

    def _largest(self) -> int:
        rank = max(part.rank for part in self._find().values())
        if self.low > rank:
            raise ConfigError(f"min_rank of the method 'dylora' is {self.low}, above the largest rank of its layers, {rank}.")
        return rank

    def before_step(self) -> None:
        """Draw the rank, and let all layers compute with it."""
        parts = self._find()
        rng = next(iter(parts.values())).rng
        self.rank = int(rng.integers(self.low, self._largest() + 1))
        for part in parts.values():
            part.rank_drawn = min(self.rank, part.rank)

    def before_update(self) -> None:
        """With `update` "last", forget the gradients of all ranks but the drawn one."""
        for part in self._find().values() if self.last else ():
            for name, axis in (("lora_A", 1), ("lora_B", 0)):
                parameter = vars(part)[name]
                if parameter.grad is not None:
                    others = np.arange(part.rank) != min(self.rank, part.rank) - 1
                    values = np.array(parameter.backend.numpy(parameter.grad))
                    values[(slice(None), others) if axis else others] = 0
                    parameter.grad = parameter.backend.asarray(values)

    def after_update(self, lr: float) -> None:
        """Let the layers compute with all ranks again, or those that `use_rank` chose."""
        for part in self._find().values():
            part.rank_drawn = None

    def record(self) -> Mapping[str, float]:
        """`rank`: the one that was drawn."""
        return {"rank": self.rank}
