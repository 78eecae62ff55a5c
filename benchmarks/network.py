"""A classifier: linear layers with ReLU between them and a LoRA adapter on each. Forward, cross-entropy, backward, AdamW."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from .case import Case, Step, normal, once
from .floors import products


@dataclass(frozen=True)
class Network(Case):
    """Layers of those sizes; one too narrow for the rank has the highest that fits. The input needs no gradient."""

    sizes: tuple[int, ...] = ()
    rank: int = 16

    def ranks(self) -> dict[str, int]:
        """The rank of each layer too narrow for the case's, by its place in the network."""
        return {str(2 * at): min(pair) for at, pair in enumerate(pairwise(self.sizes)) if min(pair) < self.rank}

    def data(self, rows: int) -> tuple[np.ndarray, np.ndarray]:
        return normal(0, rows, self.sizes[0]), np.random.default_rng(1).integers(0, self.sizes[-1], rows)

    def ours_model(self) -> Any:
        from loratk import LoraConfig, LoraModel
        from loratk.nn import MLP

        config = LoraConfig(rank=self.rank, alpha=2 * self.rank, rank_pattern=self.ranks(), targets="all-linear")
        return LoraModel.adapt(MLP(self.sizes, rng=1), config)

    def ours_step(self, model: Any, rows: int) -> Step:
        from loratk import ops
        from loratk.nn import AdamW

        (x, labels), optimiser = self.data(rows), once(model, lambda: AdamW(model.trainable(), lr=1e-4))

        def step() -> None:
            optimiser.zero_grad()
            ops.cross_entropy(model(x), labels).backward()
            optimiser.step()

        return step

    def peft_model(self) -> Any:
        import peft
        import torch

        layers = [layer for pair in pairwise(self.sizes) for layer in (torch.nn.Linear(*pair), torch.nn.ReLU())][:-1]
        places = [str(2 * at) for at in range(len(self.sizes) - 1)]
        config = peft.LoraConfig(r=self.rank, lora_alpha=2 * self.rank, target_modules=places, rank_pattern=self.ranks())
        return peft.get_peft_model(torch.nn.Sequential(*layers), config)

    def peft_step(self, model: Any, rows: int) -> Step:
        import torch

        x, labels = map(torch.from_numpy, self.data(rows))
        optimiser = once(model, lambda: torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4))

        def step() -> None:
            optimiser.zero_grad()
            torch.nn.functional.cross_entropy(model(x), labels).backward()
            optimiser.step()

        return step

    def floor(self, library: str) -> Step:
        pairs = list(pairwise(self.sizes))
        return products(self.rows, pairs, library, back=pairs[1:])
