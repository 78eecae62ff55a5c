"""A cap on the norm of updates, as `scale_weight_norms` of kohya's sd-scripts."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from ..exchange.factors import frobenius, product_norm
from .control import Controller, put
from .parts import parts_of, single

if TYPE_CHECKING:
    from .adapter import LoraAdapter
    from .model import LoraModel


class MaxNorm(Controller):
    """After each step the update of a weight whose Frobenius norm is above its `max_norm` is scaled down to it.

    Each factor takes an equal part: of LoRA A and B the square root of the ratio. The norm is that of the whole update, scaling included,
    by the factors where the method has some.
    """

    def __init__(self, model: "LoraModel", adapter: str) -> None:
        self._find = lambda: _capped(model, adapter)
        self.scaled, self.norms = 0, dict[str, float]()

    def after_update(self, lr: float) -> None:
        """Scale down what is above its cap."""
        self.scaled = 0
        for name, part in self._find().items():
            cap, norm = part.settings.max_norm, update_norm(part)
            assert cap is not None
            if norm > cap and np.isfinite(norm):
                names = [key for key in part.method.scales if key in vars(part) and vars(part)[key].requires_grad]
                for key in names:
                    parameter = vars(part)[key]
                    put(parameter, parameter.numpy() * parameter.dtype.type((cap / norm) ** (1 / len(names))))
                self.scaled += 1
                norm = cap
            self.norms[name] = norm

    def record(self) -> Mapping[str, float]:
        """`scaled_down`: how many weights' updates were; `largest_norm` and `mean_norm` after that."""
        norms = list(self.norms.values())
        return {"scaled_down": self.scaled, "largest_norm": max(norms), "mean_norm": sum(norms) / len(norms)}


def max_norm(model: "LoraModel", adapter: str) -> MaxNorm | None:
    """The controller of an adapter of which some layer has a `max_norm`."""
    return MaxNorm(model, adapter) if _capped(model, adapter) else None


def update_norm(part: "LoraAdapter") -> float:
    """The Frobenius norm of what an adapter adds to its weight; that of the dense matrix where its method has no factors."""
    factors = part.method.factors({name: value.numpy().astype(np.float64) for name, value in part.own().items()})
    if factors is not None:
        return abs(part.scaling) * product_norm(*factors)
    return frobenius(part.delta(np.zeros((part.d, part.k), part.float_dtype)))


def _capped(model: "LoraModel", adapter: str) -> dict[str, "LoraAdapter"]:
    return {part.name: part.adapter for part in single(parts_of(model, adapter)) if part.adapter.settings.max_norm is not None}
