"""A linear layer that comes with an adapter."""

from typing import Any

import numpy as np

from ..nn import Linear
from .config import LoraConfig
from .layer import LoraLayer
from .layer_types import LinearType


class LoraLinear(LoraLayer):
    """A frozen Linear(d, k) and one active adapter, named `default`: x W + b + scaling (x A) B. Hu et al. 2021, eq. 3.

    Raises ConfigError if the rank is above min(d, k). The bias trains if `config.bias` is not "none". With the config's seed
    the name decides what A is drawn: give layers of one shape that stand together names of their own.
    """

    def __init__(
        self,
        d: int,
        k: int,
        config: LoraConfig,
        *,
        name: str = "",
        bias: bool = True,
        rng: np.random.Generator | int,
        dtype: Any = np.float32,
    ) -> None:
        self._start(Linear(d, k, bias=bias, rng=rng, dtype=dtype), config, name)

    @classmethod
    def from_arrays(cls, weight: Any, bias: Any, config: LoraConfig, *, name: str = "") -> "LoraLinear":
        """A layer with copies of a pretrained weight (d, k) and bias (k,) or None. Raises ShapeError or DtypeError."""
        self = cls.__new__(cls)
        self._start(Linear.from_arrays(weight, bias), config, name)
        return self

    def _start(self, base: Linear, config: LoraConfig, name: str) -> None:
        LoraLayer.__init__(self, base.freeze(), LinearType(), name=name)
        self.add("default", config, bias=config.bias != "none")
        self.activate("default")
