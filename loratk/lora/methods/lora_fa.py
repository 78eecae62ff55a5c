"""LoRA-FA's gradient of B: the step of W that is nearest to full fine-tuning's, of all that a frozen A allows."""

from typing import TYPE_CHECKING, Any

import numpy as np

from ..control import Controller

if TYPE_CHECKING:
    from ..adapter import LoraAdapter
    from ..model import LoraModel
    from .base import Method

DAMPING = 1e-8
"""What PEFT adds to the diagonal before it inverts."""


class Corrected(Controller):
    """Before the optimiser's step g_B becomes (A^T A + 1e-8)^-1 g_B / scaling^2.

    With B moved by it W moves by scaling A g_B, the part of the full gradient that columns of A can make: it minimises
    ||scaling A g - G|| (Zhang et al. 2023; the optimiser of PEFT 0.21).
    """

    def __init__(self, parts: "list[LoraAdapter]") -> None:
        self._parts = [(part, _inverse(part)) for part in parts]

    def before_update(self) -> None:
        """Correct the gradient of every B."""
        for part, inverse in self._parts:
            b = vars(part)["lora_B"]
            if b.grad is not None:
                b.grad = b.backend.matmul(b.backend.asarray(inverse), b.grad)


def _inverse(part: "LoraAdapter") -> Any:
    a = vars(part)["lora_A"].numpy().astype(np.float64)
    square = part.scaling**2 or 1.0  # with a scaling of 0 there is no gradient
    return (np.linalg.pinv(a.T @ a + DAMPING * np.eye(a.shape[1]), hermitian=True) / square).astype(part.float_dtype)


def corrected(model: "LoraModel", adapter: str, method: "Method") -> Controller | None:
    """The controller for the layers of an adapter whose method is this one and asks for it; None where none does."""
    parts = [
        part
        for layer in model.layers.values()
        if adapter in layer.names()
        for part in layer.adapter(adapter).blocks().values()
        if part.method is method and part.settings.options.get("corrected")
    ]
    return Corrected(parts) if parts else None
