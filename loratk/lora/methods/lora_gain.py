"""LoRA whose scaling is learned, layer by layer."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ...autograd import Tensor
from ...kernels import Backend
from .base import Call
from .lora import Lora


class LoraGain(Lora):
    """W + scaling g A B with a number g for each layer that trains, 1 at first: the scaling finds itself where alpha was a guess.

    As the length g of weight normalisation (Salimans & Kingma 2016, eq. 2), on the update alone. To other formats, and to arithmetic on
    adapters, it is plain LoRA whose scaling is scaling g.
    """

    name = "lora_gain"

    def initial(self, weight: np.ndarray, rank: int, rng: np.random.Generator, options: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """lora_A (d, r) random, lora_B (r, k) zero, gain (1,) one."""
        return {**super().initial(weight, rank, rng, options), "gain": np.ones(1, weight.dtype)}

    def shapes(self, d: int, k: int, rank: int) -> dict[str, tuple[int, ...]]:
        """lora_A (d, r), lora_B (r, k), gain (1,)."""
        return {**super().shapes(d, k, rank), "gain": (1,)}

    def factors(self, parameters: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """g A, B."""
        return parameters["lora_A"] * parameters["gain"], parameters["lora_B"]

    def update(self, call: Call, parameters: Mapping[str, Tensor], scaling: float) -> Tensor:
        """scaling g (x A) B."""
        return (call.drop_ranks(call.apply(parameters["lora_A"])) * parameters["gain"]) @ (parameters["lora_B"] * scaling)

    def delta(self, K: Backend, weight: Any, parameters: Mapping[str, Any], scaling: float) -> Any:
        """scaling g A B."""
        return K.mul(super().delta(K, weight, parameters, scaling), parameters["gain"])
