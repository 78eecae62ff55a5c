"""Low-rank Hadamard product adaptation."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from loratk import Method, Tensor
from loratk.lora import Call


class LoHa(Method):
    """W + scaling (A1 B1) * (A2 B2), entry by entry: rank up to r^2 from the numbers of rank 2r. Hyeon-Woo et al. 2022, eq. 3.

    B2 starts at 0, the others are drawn from N(0, 1/d) (A1, A2) and N(0, 1) (B1).
    """

    name = "loha"

    def shapes(self, d: int, k: int, rank: int) -> dict[str, tuple[int, ...]]:
        """A1, A2 (d, r), B1, B2 (r, k)."""
        return {"loha_A1": (d, rank), "loha_B1": (rank, k), "loha_A2": (d, rank), "loha_B2": (rank, k)}

    def initial(self, weight: np.ndarray, rank: int, rng: np.random.Generator, options: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """The product is 0, as B2 is."""
        d, k = weight.shape
        spread = {"loha_A1": d**-0.5, "loha_B1": 1.0, "loha_A2": d**-0.5, "loha_B2": 0.0}
        return {name: (spread[name] * rng.standard_normal(shape)).astype(weight.dtype) for name, shape in self.shapes(d, k, rank).items()}

    def update(self, call: Call, parameters: Mapping[str, Tensor], scaling: float) -> Tensor:
        """The layer's operation with the product in its weight's place."""
        p = parameters
        return call.apply((p["loha_A1"] @ p["loha_B1"]) * (p["loha_A2"] @ p["loha_B2"]) * scaling)

    def delta(self, K: Any, weight: Any, parameters: Mapping[str, Any], scaling: float) -> Any:
        """scaling (A1 B1) * (A2 B2), in kernels of the backend."""
        p = parameters
        product = K.mul(K.matmul(p["loha_A1"], p["loha_B1"]), K.matmul(p["loha_A2"], p["loha_B2"]))
        return K.mul(product, K.asarray(np.asarray(scaling, product.dtype)))
