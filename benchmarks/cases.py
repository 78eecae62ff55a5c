"""The cases: for each one step by loratk, by a peer, and the floor, which is the frozen matrix products alone by NumPy's BLAS.

A step is forward, loss, backward and AdamW; for a single layer forward and backward. The floor of a step is x W for
each layer and g W^T for each but the first, whose input needs no gradient (for the single layer both).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from loratk import LoraConfig, LoraModel, Tensor, ops
from loratk.nn import MLP, AdamW, Linear

Step = Callable[[], object]


@dataclass(frozen=True)
class Case:
    """A network of linear layers with ReLU between them and a LoRA adapter on each, trained on rows of random numbers."""

    name: str
    rows: int
    sizes: tuple[int, ...]
    rank: int
    rounds: int = 30

    @property
    def single(self) -> bool:
        return len(self.sizes) == 2

    def ranks(self) -> dict[str, int]:
        """The rank of each layer that is too narrow for the case's, by its place in the network."""
        pairs = zip(self.sizes, self.sizes[1:], strict=False)
        return {str(2 * i): min(pair) for i, pair in enumerate(pairs) if min(pair) < self.rank}

    def data(self) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(0)
        return rng.standard_normal((self.rows, self.sizes[0]), np.float32), rng.integers(0, self.sizes[-1], self.rows)

    def ours(self) -> Step:
        config = LoraConfig(rank=self.rank, alpha=2 * self.rank, rank_pattern=self.ranks(), targets="all-linear")
        base = Linear(*self.sizes, rng=1) if self.single else MLP(self.sizes, rng=1)
        model = LoraModel.adapt(base, config)
        x, y = self.data()
        if self.single:
            g = np.random.default_rng(2).standard_normal((self.rows, self.sizes[-1]), np.float32)

            def step() -> None:
                model.zero_grad()
                model(Tensor(x, requires_grad=True)).backward(g)
        else:
            optimiser = AdamW(model.trainable(), lr=1e-4)

            def step() -> None:
                optimiser.zero_grad()
                ops.cross_entropy(model(x), y).backward()
                optimiser.step()

        return step

    def peft(self) -> Step:
        import peft
        import torch

        x, y = (torch.from_numpy(array) for array in self.data())
        pairs = list(zip(self.sizes, self.sizes[1:], strict=False))
        layers = [layer for pair in pairs for layer in (torch.nn.Linear(*pair), torch.nn.ReLU())][:-1]
        names = [str(2 * i) for i in range(len(pairs))]
        config = peft.LoraConfig(r=self.rank, lora_alpha=2 * self.rank, target_modules=names, rank_pattern=self.ranks())
        model = peft.get_peft_model(torch.nn.Sequential(*layers), config)
        trainable = [p for p in model.parameters() if p.requires_grad]
        if self.single:
            g = torch.from_numpy(np.random.default_rng(2).standard_normal((self.rows, self.sizes[-1]), np.float32))

            def step() -> None:
                for p in trainable:
                    p.grad = None
                model(x.clone().requires_grad_()).backward(g)
        else:
            optimiser = torch.optim.AdamW(trainable, lr=1e-4)

            def step() -> None:
                optimiser.zero_grad()
                torch.nn.functional.cross_entropy(model(x), y).backward()
                optimiser.step()

        return step

    def floor(self) -> Step:
        rng = np.random.default_rng(3)
        pairs = list(zip(self.sizes, self.sizes[1:], strict=False))
        weights = [rng.standard_normal(pair, np.float32) for pair in pairs]
        inputs = [rng.standard_normal((self.rows, d), np.float32) for d, _ in pairs]
        gradients = [rng.standard_normal((self.rows, k), np.float32) for _, k in pairs]
        back = list(zip(gradients, weights, strict=True))[0 if self.single else 1 :]

        def step() -> None:
            for x, w in zip(inputs, weights, strict=True):
                x @ w
            for g, w in back:
                g @ w.T

        return step


CASES = [
    Case("linear-2048-1024x1024-r16", 2048, (1024, 1024), 16, rounds=15),
    Case("linear-64-1024x1024-r16", 64, (1024, 1024), 16, rounds=100),
    Case("linear-512-768x768-r8", 512, (768, 768), 8, rounds=40),
    Case("classifier-64-784-512-256-10-r16", 64, (784, 512, 256, 10), 16, rounds=100),
    Case("classifier-64-64-128-64-10-r8", 64, (64, 128, 64, 10), 8, rounds=200),
]
