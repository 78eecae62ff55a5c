"""LoRA."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ...autograd import Tensor
from ...kernels import Backend
from ..inits.base import Start
from ..inits.chance import Kaiming
from .base import Call, Method


class Lora(Method):
    """Low-rank adaptation: W + scaling A B, A random, B zero. Hu et al. 2021, eq. 3."""

    name, proportional, takes_init, drops_ranks = "lora", True, True, True

    def initial(self, weight: np.ndarray, rank: int, rng: np.random.Generator, options: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """lora_A (d, r) random, lora_B (r, k) zero."""
        started = Kaiming().start(Start(weight, rank, 1.0, rng))
        return {"lora_A": started.lora_A, "lora_B": started.lora_B}

    def shapes(self, d: int, k: int, rank: int) -> dict[str, tuple[int, ...]]:
        """lora_A (d, r), lora_B (r, k)."""
        return {"lora_A": (d, rank), "lora_B": (rank, k)}

    def update(self, call: Call, parameters: Mapping[str, Tensor], scaling: float) -> Tensor:
        """scaling (x A) B."""
        return call.drop_ranks(call.apply(parameters["lora_A"])) @ (parameters["lora_B"] * scaling)

    def delta(self, K: Backend, weight: Any, parameters: Mapping[str, Any], scaling: float) -> Any:
        """scaling A B."""
        return times(K, K.matmul(parameters["lora_A"], parameters["lora_B"]), scaling)


def times(K: Backend, x: Any, factor: float) -> Any:
    """x times a number, in x's dtype."""
    return K.mul(x, K.asarray(np.asarray(factor, x.dtype)))
