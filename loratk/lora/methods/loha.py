"""LoHa."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ...autograd import Tensor
from ...kernels import Backend
from .base import Call, Method
from .lora import times

SPREAD = {"loha_A1": 1.0, "loha_B1": 0.1, "loha_A2": 1.0, "loha_B2": 0.0}


class Loha(Method):
    """Low-rank Hadamard product: W + scaling (A1 B1) * (A2 B2), entry by entry: rank up to r^2. Hyeon-Woo et al. 2022 (FedPara), eq. 3.

    B2 starts at 0, the others from normal distributions of spread 1 (A1, A2) and 0.1 (B1), as in LyCORIS.
    """

    name, proportional = "loha", True
    scales = ("loha_A1", "loha_B1", "loha_A2", "loha_B2")

    def initial(self, weight: np.ndarray, rank: int, rng: np.random.Generator, options: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """loha_A1, loha_A2 (d, r), loha_B1 (r, k) random, loha_B2 (r, k) zero."""
        d, k = weight.shape
        shapes = self.shapes(d, k, rank)
        drawn = {name: rng.standard_normal(shape, np.float32) * np.float32(SPREAD[name]) for name, shape in shapes.items()}
        return {name: array.astype(weight.dtype) for name, array in drawn.items()}

    def shapes(self, d: int, k: int, rank: int) -> dict[str, tuple[int, ...]]:
        """loha_A1 (d, r), loha_B1 (r, k), loha_A2 (d, r), loha_B2 (r, k)."""
        return {"loha_A1": (d, rank), "loha_B1": (rank, k), "loha_A2": (d, rank), "loha_B2": (rank, k)}

    def update(self, call: Call, parameters: Mapping[str, Tensor], scaling: float) -> Tensor:
        """x times the product of both, or, where that costs less, times its r^2 factors: (x (A1 . A2)) (B1 . B2), by rows and columns."""
        a1, b1, a2, b2 = (parameters[name] for name in SPREAD)
        (d, rank), k = a1.shape, b1.shape[1]
        n = call.product.size // k
        if rank * rank * (2 * n + 1) * (d + k) < 2 * d * k * (n + 2 * rank):
            a = (a1.reshape(d, rank, 1) * a2.reshape(d, 1, rank)).reshape(d, rank * rank)
            b = (b1.reshape(rank, 1, k) * b2.reshape(1, rank, k)).reshape(rank * rank, k)
            return call.apply(a) @ (b * scaling)
        return call.apply((a1 @ b1) * (a2 @ (b2 * scaling)))

    def delta(self, K: Backend, weight: Any, parameters: Mapping[str, Any], scaling: float) -> Any:
        """scaling (A1 B1) * (A2 B2)."""
        a1, b1, a2, b2 = (parameters[name] for name in SPREAD)
        return times(K, K.mul(K.matmul(a1, b1), K.matmul(a2, b2)), scaling)
