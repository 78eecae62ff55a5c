"""Adapters and how much each of them counts."""

from collections.abc import Iterable, Mapping

import numpy as np

from ..errors import ConfigError

Active = Iterable[str] | Mapping[str, float] | str


def as_weights(active: Active) -> dict[str, float]:
    """Active adapters as a mapping of names to finite weights. Raises ConfigError."""
    if isinstance(active, str):
        return {active: 1.0}
    weights = dict(active) if isinstance(active, Mapping) else dict.fromkeys(active, 1.0)
    for name, weight in weights.items():
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not np.isfinite(weight):
            raise ConfigError(f"The weight of adapter {name!r} must be a finite number, found {weight!r}.")
    return {name: float(weight) for name, weight in weights.items()}
