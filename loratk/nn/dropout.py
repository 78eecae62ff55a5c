"""Dropout."""

from typing import Any

import numpy as np

from ..autograd import Tensor, ops
from ..errors import ConfigError
from .module import Module, generator


def probability(p: Any) -> float:
    """A dropout probability, in [0, 1). Raises ConfigError."""
    if isinstance(p, bool) or not isinstance(p, (int, float, np.number)) or not 0 <= p < 1:
        raise ConfigError(f"The dropout probability must be in [0, 1), found {p!r}.")
    return float(p)


def offspring(rng: np.random.Generator) -> np.random.Generator:
    """A generator seeded by a draw from another.

    Each dropout inside a larger module has one of its own, so that its masks do not depend on what else draws.
    """
    return np.random.default_rng(int(rng.integers(2**63)))


class Dropout(Module):
    """Each entry 0 with probability `p`, else divided by 1 - p; x itself in evaluation: (...) -> (...).

    Srivastava et al. 2014, in its inverted form. Masks come from `rng`, which `Module.generators` finds.
    """

    def __init__(self, p: float, rng: np.random.Generator | int) -> None:
        self.p, self.rng = probability(p), generator(rng)

    def forward(self, x: Any) -> Tensor:
        """(...) -> (...)."""
        x = self.input(x)
        return ops.dropout(x, self.p, self.rng) if self.training else x

    def describe(self) -> str:
        """The probability, for the repr."""
        return f"p={self.p}"
