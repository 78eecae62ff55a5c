"""A drawn at random, and B zero, or random where A does not reach."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from .base import Init, Start, Started, started


class Kaiming(Init):
    """A uniform in +-1/sqrt(d), B = 0: what LoRA layers start from where nothing else is said. He et al. 2015, with a = sqrt 5."""

    name = "kaiming"

    def start(self, start: Start) -> Started:
        """lora_A (d, r) random, lora_B (r, k) zero."""
        d, _ = start.weight.shape
        return started(start, start.rng.uniform(-(d**-0.5), d**-0.5, (d, start.rank)))


class Gaussian(Init):
    """A from N(0, 1/r^2), B = 0. Hu et al. 2021, section 4.1, with the deviation 1/r that PEFT gives it."""

    name = "gaussian"

    def start(self, start: Start) -> Started:
        """lora_A (d, r) random, lora_B (r, k) zero."""
        return started(start, start.rng.standard_normal((start.weight.shape[0], start.rank)) / start.rank)


class Orthogonal(Init):
    """Neither A nor B is 0, but A B is: the columns of A lie in one half of the r ranks, the rows of B in the other. The rank is even.

    With Q (r, r) orthogonal and Gaussian X (d, r/2), Y (r/2, k): A = X Q_even / 10, B = Q_odd^T Y / 10, of Q every other row, as PEFT
    0.21 does (after datta0, "Rethinking LoRA initialisation", 2024).
    """

    name = "orthogonal"

    def layer_faults(self, d: int, k: int, rank: int, scaling: float, options: Mapping[str, Any]) -> Iterator[str]:
        """An odd rank."""
        if rank % 2:
            yield f"the init 'orthogonal' halves the rank, which must be even, found {rank}"

    def start(self, start: Start) -> Started:
        """lora_A (d, r), lora_B (r, k), both random, their product 0 to rounding."""
        (d, k), r, draw = start.weight.shape, start.rank, start.rng.standard_normal
        q, _ = np.linalg.qr(draw((r, r)))
        return started(start, draw((d, r // 2)) @ q[0::2] / 10, q[1::2].T @ draw((r // 2, k)) / 10)
