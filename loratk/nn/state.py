"""Whether a state, arrays by name, fits what is to take it over."""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np


class Shaped(Protocol):
    """What has a shape and a dtype: a parameter, an array."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The size along each axis."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """The kind of number."""


def state_faults(mine: Mapping[str, Shaped], state: Mapping[str, np.ndarray], *, finite: bool = False) -> list[str]:
    """Every way in which a state does not fit, sorted: names missing or unexpected, shapes, dtypes, and, if asked, NaN and infinity."""
    found = [f"missing: {name!r} {mine[name].shape}" for name in mine.keys() - state.keys()]
    found += [f"unexpected: {name!r} {state[name].shape}" for name in state.keys() - mine.keys()]
    for name in mine.keys() & state.keys():
        want, got = mine[name], state[name]
        if got.shape != want.shape:
            found.append(f"wrong shape: {name!r} must be {want.shape}, found {got.shape}")
        elif got.dtype != want.dtype:
            found.append(f"wrong dtype: {name!r} must be {want.dtype}, found {got.dtype}; convert it with astype")
        elif finite and not np.isfinite(got).all():
            found.append(f"not finite: {name!r} holds NaN or infinity")
    return sorted(found)
