"""A batch whose rows have many different adapters, as when one base serves many users."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from .case import Step, normal
from .layer import Layer


@dataclass(frozen=True)
class Mixed(Layer):
    """A layer d -> k with adapters of ranks from 4 to 64, which the rows take in turn: forward, or, if it trains, backward too.

    The floor is loratk itself with one adapter of the case's rank for all rows: what many adapters cost beside one. PEFT's way is
    `adapter_names`, which runs each adapter's rows by themselves, and has no backward pass.
    """

    adapters: int = 32

    def ranks(self) -> list[int]:
        """The rank of each adapter."""
        return [min(self.d, self.k, round(rank)) for rank in np.linspace(4, 64, self.adapters).tolist()]

    def names(self, rows: int) -> list[str]:
        """The adapter of each row."""
        return [f"user{row % self.adapters}" for row in range(rows)]

    def ours_model(self) -> Any:
        from loratk import LoraConfig, LoraModel
        from loratk.nn import Linear

        model = LoraModel(Linear(self.d, self.k, rng=1))
        for name, rank in [*zip(self.names(self.adapters), self.ranks(), strict=True), ("one", self.rank)]:
            model.add_adapter(name, LoraConfig(rank=rank, alpha=2 * rank))
        return model

    def ours_step(self, model: Any, rows: int) -> Step:
        return self._step(model, rows, self.names(rows))

    def _step(self, model: Any, rows: int, adapter: Any) -> Step:
        from loratk import Tensor, no_grad

        x, g = normal(0, rows, self.d), normal(2, rows, self.k)
        if self.trains:

            def train() -> None:
                model.zero_grad()
                model(Tensor(x, requires_grad=True), adapter=adapter).backward(g)

            return train
        held = Tensor(x)
        model.eval()

        def step() -> Any:
            with no_grad():
                return model(held, adapter=adapter)

        return step

    def peft_model(self) -> Any:
        import peft
        import torch

        model: Any = None
        base = torch.nn.Sequential(torch.nn.Linear(self.d, self.k))
        for name, rank in zip(self.names(self.adapters), self.ranks(), strict=True):
            config = peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=["0"])
            if model is None:
                model = peft.get_peft_model(base, config, adapter_name=name)
            else:
                model.add_adapter(name, config)
        return model

    def peft_step(self, model: Any, rows: int) -> Step:
        import torch

        x, names = torch.from_numpy(normal(0, rows, self.d)), self.names(rows)
        model.eval()

        def step() -> Any:
            with torch.inference_mode():
                return model(x, adapter_names=names)

        return step

    def floor(self, library: str) -> Step:
        return self._step(self.ours_model(), self.rows, "one")
