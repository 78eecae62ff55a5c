"""Ops with a random draw, which always comes from a generator that the caller seeded."""

import numpy as np

from ...errors import ConfigError
from ..tensor import Tensor, apply
from ..vjps import defvjp


def dropout(x: Tensor, p: float, rng: np.random.Generator) -> Tensor:
    """Each entry 0 with probability p, else divided by 1 - p. Srivastava et al. 2014, in its inverted form."""
    if not 0.0 <= p < 1.0:
        raise ConfigError(f"The dropout probability must be in [0, 1), found {p}.")
    if p == 0.0:
        return x
    return apply("dropout", x, rng.random(x.shape, np.float32) >= p, scale=1 / (1 - p))


defvjp("dropout", lambda K, out, x, mask, scale: lambda g: K.dropout(g, mask, scale=scale), None)
