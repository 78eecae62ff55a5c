"""A linear layer that comes with an adapter."""

from typing import Any

import numpy as np

from ..nn import Linear
from .config import LoraConfig
from .layer import LoraLayer
from .layer_types import LinearType


class LoraLinear(LoraLayer):
    """A frozen Linear(d, k) and one active adapter, named `default`: x W + b + scaling (x A) B. Hu et al. 2021, eq. 3.

    Raises ConfigError if the rank is above min(d, k). The bias trains if `config.bias` is not "none".
    """

    def __init__(
        self, d: int, k: int, config: LoraConfig, *, bias: bool = True, rng: np.random.Generator | int = 0, dtype: Any = np.float32
    ) -> None:
        self._start(Linear(d, k, bias=bias, rng=rng, dtype=dtype), config)

    @classmethod
    def from_arrays(cls, weight: Any, bias: Any, config: LoraConfig) -> "LoraLinear":
        """A layer with copies of a pretrained weight (d, k) and bias (k,) or None. Raises ShapeError or DtypeError."""
        self = cls.__new__(cls)
        self._start(Linear.from_arrays(weight, bias), config)
        return self

    def _start(self, base: Linear, config: LoraConfig) -> None:
        LoraLayer.__init__(self, base.freeze(), LinearType())
        self.add("default", config, bias=config.bias != "none")
        self.activate("default")
