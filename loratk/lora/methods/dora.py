"""DoRA."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ...autograd import Tensor
from ...kernels import Backend
from .base import Call
from .lora import Lora


class Dora(Lora):
    """Weight-decomposed adaptation: m (W + scaling A B) / ||W + scaling A B||, the norm of each column. Liu et al. 2024, eq. 5.

    `magnitude` m (k,) starts as the column norms of W, so that the update starts at 0. In the backward pass the norm
    is a constant (section 4.3).
    """

    name, proportional = "dora", False

    def initial(self, weight: np.ndarray, rank: int, rng: np.random.Generator, options: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """lora_A (d, r) random, lora_B (r, k) zero, magnitude (k,) the column norms of the weight."""
        magnitude = np.sqrt(np.sum(np.square(weight, dtype=np.float64), axis=0)).astype(weight.dtype)
        return {**super().initial(weight, rank, rng, options), "magnitude": magnitude}

    def shapes(self, d: int, k: int, rank: int) -> dict[str, tuple[int, ...]]:
        """lora_A (d, r), lora_B (r, k), magnitude (k,)."""
        return {**super().shapes(d, k, rank), "magnitude": (k,)}

    def update(self, call: Call, parameters: Mapping[str, Tensor], scaling: float) -> Tensor:
        """(m/c - 1) x W + m/c scaling (x A) B, c the column norms."""
        m, a, b = (parameters[name] for name in ("magnitude", "lora_A", "lora_B"))
        ratio = m / Tensor(_column_norm(m.backend, call.weight(), a.data, b.data, scaling), backend=m.backend)
        return (ratio - 1.0) * call.dropped_product() + ratio * super().update(call, parameters, scaling)

    def delta(self, K: Backend, weight: Any, parameters: Mapping[str, Any], scaling: float) -> Any:
        """m/c (W + scaling A B) - W."""
        a, b = parameters["lora_A"], parameters["lora_B"]
        norm = _column_norm(K, K.freeze_weight(weight), a, b, scaling)
        moved = K.add(weight, super().delta(K, weight, parameters, scaling))
        return K.sub(K.mul(moved, K.div(parameters["magnitude"], norm)), weight)


def _column_norm(K: Backend, weight: Any, a: Any, b: Any, scaling: float) -> Any:
    """||W + scaling A B|| per column, kept above 0 so that a column of zeros stays one."""
    norm = K.lora_column_norm(weight, a, b, scaling=scaling)
    return K.maximum(norm, K.asarray(np.asarray(np.finfo(norm.dtype).tiny, norm.dtype)))
