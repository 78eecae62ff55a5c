"""The forward pass alone, its adapter on, as when a model serves."""

import os
from dataclasses import dataclass
from typing import Any

from .case import Step, normal
from .floors import products, read
from .layer import Layer


@dataclass(frozen=True)
class Forward(Layer):
    """A layer d -> k without gradients. The floor of one row is reading the weight once, of more rows the product."""

    def ours_step(self, model: Any, rows: int) -> Step:
        from loratk import Tensor, no_grad

        x = Tensor(normal(0, rows, self.d))
        model.eval()

        def step() -> Any:
            with no_grad():
                return model(x)

        return step

    def peft_step(self, model: Any, rows: int) -> Step:
        import torch

        x = torch.from_numpy(normal(0, rows, self.d))
        model.eval()

        def step() -> Any:
            with torch.inference_mode():
                return model(x)

        return step

    def floor(self, library: str) -> Step:
        if self.rows > 1:
            return products(self.rows, [(self.d, self.k)], library)
        return read(self.d * self.k, int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1))
