"""How much each adapter counts in each module: its own weight, times that of the first pattern that matches the module."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from ..errors import ConfigError, faults
from ..lora.targets import deciding, few, pattern_faults

Layers = Mapping[str, float | Sequence[float]]


def shares(weights: Sequence[float], layers: Layers, modules: Sequence[str]) -> dict[str, list[float]]:
    """By module the weight of each adapter.

    layers: by pattern (as in `loratk.lora.targets`) a factor for all adapters, or one for each. Raises ConfigError that lists weights that
    are no finite numbers, and patterns that are none or decide about no module.
    """
    count, found = len(weights), []
    factors: dict[str, list[float]] = {}
    if not all(map(_is_number, weights)):
        found.append(f"weights must be finite numbers, found {', '.join(map(repr, weights))}")
    for pattern, given in layers.items():
        found += pattern_faults("layers", pattern)
        each = list(given) if isinstance(given, Sequence) and not isinstance(given, str) else [given] * count
        factors[pattern] = [float(factor) if _is_number(factor) else math.nan for factor in each]
        if len(each) != count or not all(map(_is_number, each)):
            found.append(f"{pattern!r} needs one finite number, or one for each of {count} adapters, found {given!r}")
    if not found:
        by, found = deciding(factors, modules)
    if found:
        raise ConfigError(faults(f"These weights do not fit the adapters' modules ({few(modules)}):", found))
    return {
        module: [weight * factor for weight, factor in zip(weights, [1.0] * count if pattern is None else factors[pattern], strict=True)]
        for module, pattern in by.items()
    }


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
