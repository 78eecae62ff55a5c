"""A 2-D convolution with a LoRA adapter, 3x3, as a layer within a network: forward, loss, backward, AdamW."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from .case import Case, Step, normal
from .floors import products
from .layer import ours_step, peft_step


@dataclass(frozen=True)
class Convolution(Case):
    """Images of side x side with c channels to k channels; channels last here, channels first in PyTorch. `rows` are images."""

    c: int = 64
    k: int = 64
    side: int = 32
    rank: int = 16

    def images(self, seed: int, rows: int, channels: int) -> np.ndarray:
        return normal(seed, rows, self.side, self.side, channels)

    def ours_model(self) -> Any:
        from loratk import LoraConfig, LoraModel
        from loratk.nn import Conv2d, Sequential

        config = LoraConfig(rank=self.rank, alpha=2 * self.rank, targets="0")
        return LoraModel.adapt(Sequential(Conv2d(self.c, self.k, 3, padding=1, rng=1)), config)

    def ours_step(self, model: Any, rows: int) -> Step:
        return ours_step(model, self.images(0, rows, self.c), self.images(2, rows, self.k), trains=True)

    def peft_model(self) -> Any:
        import peft
        import torch

        config = peft.LoraConfig(r=self.rank, lora_alpha=2 * self.rank, target_modules=["0"])
        return peft.get_peft_model(torch.nn.Sequential(torch.nn.Conv2d(self.c, self.k, 3, padding=1)), config)

    def peft_step(self, model: Any, rows: int) -> Step:
        x, target = (np.ascontiguousarray(self.images(*of).transpose(0, 3, 1, 2)) for of in ((0, rows, self.c), (2, rows, self.k)))
        return peft_step(model, x, target, trains=True)

    def floor(self, library: str) -> Step:
        """The product of the patches with the kernel as a matrix, and back, without taking the patches."""
        matrix = [(9 * self.c, self.k)]
        return products(self.rows * self.side**2, matrix, library, back=matrix)
