"""Hadamard high-rank adaptation."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from loratk import Method, Tensor
from loratk.lora import Call


class HiRA(Method):
    """W + scaling W * (A B), entry by entry: as many numbers as LoRA, and a rank up to that of W times r. Huang et al. 2025 (HiRA).

    A is drawn from N(0, 1/r), B starts at 0.
    """

    name = "hira"

    def shapes(self, d: int, k: int, rank: int) -> dict[str, tuple[int, ...]]:
        """A (d, r), B (r, k)."""
        return {"hira_A": (d, rank), "hira_B": (rank, k)}

    def initial(self, weight: np.ndarray, rank: int, rng: np.random.Generator, options: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """The product is 0, as B is."""
        d, k = weight.shape
        a = rng.standard_normal((d, rank)) * rank**-0.5
        return {"hira_A": a.astype(weight.dtype), "hira_B": np.zeros((rank, k), weight.dtype)}

    def update(self, call: Call, parameters: Mapping[str, Tensor], scaling: float) -> Tensor:
        """The layer's operation with the product in its weight's place."""
        assert call.matrix is not None
        return call.apply(call.matrix() * (parameters["hira_A"] @ (parameters["hira_B"] * scaling)))

    def delta(self, K: Any, weight: Any, parameters: Mapping[str, Any], scaling: float) -> Any:
        """scaling W * (A B), in kernels of the backend."""
        product = K.mul(weight, K.matmul(parameters["hira_A"], parameters["hira_B"]))
        return K.mul(product, K.asarray(np.asarray(scaling, product.dtype)))
