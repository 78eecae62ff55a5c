"""One linear layer with an adapter: forward and backward, and, if it trains, loss and AdamW too."""

from dataclasses import dataclass
from typing import Any

from .case import Case, Step, normal, once
from .floors import products


@dataclass(frozen=True)
class Layer(Case):
    """A layer d -> k within a network, so its input needs a gradient."""

    d: int = 1024
    k: int = 1024
    rank: int = 16
    dora: bool = False
    trains: bool = False

    def ours_model(self) -> Any:
        from loratk import LoraConfig, LoraModel
        from loratk.nn import Linear

        config = LoraConfig(rank=self.rank, alpha=2 * self.rank, method="dora" if self.dora else "lora", targets="all-linear")
        return LoraModel.adapt(Linear(self.d, self.k, rng=1), config)

    def ours_step(self, model: Any, rows: int) -> Step:
        return ours_step(model, normal(0, rows, self.d), normal(2, rows, self.k), trains=self.trains)

    def peft_model(self) -> Any:
        import peft
        import torch

        config = peft.LoraConfig(r=self.rank, lora_alpha=2 * self.rank, target_modules=["0"], use_dora=self.dora)
        return peft.get_peft_model(torch.nn.Sequential(torch.nn.Linear(self.d, self.k)), config)

    def peft_step(self, model: Any, rows: int) -> Step:
        return peft_step(model, normal(0, rows, self.d), normal(2, rows, self.k), trains=self.trains)

    def floor(self, library: str) -> Step:
        return products(self.rows, [(self.d, self.k)], library, back=[(self.d, self.k)])


def ours_step(model: Any, x: Any, g: Any, *, trains: bool) -> Step:
    """Forward and backward with a gradient g of the output; if it trains, with g as the target of a loss, and AdamW."""
    from loratk import Tensor, ops
    from loratk.nn import AdamW

    if not trains:

        def step() -> None:
            model.zero_grad()
            model(Tensor(x, requires_grad=True)).backward(g)

        return step
    optimiser = once(model, lambda: AdamW(model.trainable(), lr=1e-4))

    def train() -> None:
        optimiser.zero_grad()
        ops.mse(model(Tensor(x, requires_grad=True)), g).backward()
        optimiser.step()

    return train


def peft_step(model: Any, x: Any, g: Any, *, trains: bool) -> Step:
    """The same by PyTorch."""
    import torch

    x, g = torch.from_numpy(x), torch.from_numpy(g)
    trainable = [p for p in model.parameters() if p.requires_grad]
    if not trains:

        def step() -> None:
            for p in trainable:
                p.grad = None
            model(x.detach().requires_grad_()).backward(g)

        return step
    optimiser = once(model, lambda: torch.optim.AdamW(trainable, lr=1e-4))

    def train() -> None:
        optimiser.zero_grad()
        torch.nn.functional.mse_loss(model(x.detach().requires_grad_()), g).backward()
        optimiser.step()

    return train
