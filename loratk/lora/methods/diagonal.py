"""What methods share whose update is A diag(e) B: a number for each rank, which training may bring to 0."""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from ...autograd import Tensor
from ...kernels import Backend
from .base import Call, Method
from .lora import times


class Diagonal(Method):
    """W + scaling A diag(e) B, with `lora_A` (d, r), `lora_B` (r, k), and e (r,) under the name that `diagonal` says."""

    proportional, drops_ranks = True, True
    diagonal: ClassVar[str]

    def shapes(self, d: int, k: int, rank: int) -> dict[str, tuple[int, ...]]:
        """lora_A (d, r), the diagonal (r,), lora_B (r, k)."""
        return {"lora_A": (d, rank), self.diagonal: (rank,), "lora_B": (rank, k)}

    def update(self, call: Call, parameters: Mapping[str, Tensor], scaling: float) -> Tensor:
        """scaling ((x A) * e) B."""
        inner = call.drop_ranks(call.apply(parameters["lora_A"])) * parameters[self.diagonal]
        return inner @ (parameters["lora_B"] * scaling)

    def delta(self, K: Backend, weight: Any, parameters: Mapping[str, Any], scaling: float) -> Any:
        """scaling A diag(e) B."""
        a = K.mul(parameters["lora_A"], parameters[self.diagonal])
        return times(K, K.matmul(a, parameters["lora_B"]), scaling)

    def factors(self, parameters: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """A diag(e), B."""
        return parameters["lora_A"] * parameters[self.diagonal], parameters["lora_B"]

    def take(self, parameters: Mapping[str, np.ndarray], ranks: np.ndarray) -> dict[str, np.ndarray]:
        """Those columns of A, entries of e and rows of B."""
        a, e, b = (parameters[name] for name in ("lora_A", self.diagonal, "lora_B"))
        return {"lora_A": a[:, ranks], self.diagonal: e[ranks], "lora_B": b[ranks]}

    def compact(self, parameters: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], int] | None:
        """The ranks whose e is not 0."""
        ranks = np.flatnonzero(parameters[self.diagonal])
        return None if len(ranks) == len(parameters[self.diagonal]) else (self.take(parameters, ranks), len(ranks))
