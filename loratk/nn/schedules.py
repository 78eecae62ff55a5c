"""Learning-rate schedules: functions from the number of a step, counted from 0, to the factor on the learning rate."""

import math
from collections.abc import Callable

import numpy as np

from ..errors import ConfigError
from .linear import positive
from .param_groups import number

Schedule = Callable[[int], float]


def constant() -> Schedule:
    """1 at every step."""
    return lambda t: 1.0


def linear_warmup(warmup: int, total: int | None = None) -> Schedule:
    """Up from 1/(warmup + 1) to 1 at step `warmup`; then 1, or, given `total`, down in a line to 0 at step `total`."""
    _check(warmup, total)
    if total is None:
        return lambda t: min(_rise(t, warmup), 1.0)
    return lambda t: _rise(t, warmup) if t < warmup else max(0.0, (total - t) / (total - warmup))


def cosine(total: int, *, warmup: int = 0, floor: float = 0.0) -> Schedule:
    """Up from 1/(warmup + 1) to 1 at step `warmup`, then half a cosine down to `floor` at step `total`, and `floor` from there.

    Loshchilov & Hutter 2017, eq. 5, without restarts.
    """
    _check(warmup, total)
    floor = _share("floor", floor)

    def schedule(t: int) -> float:
        if t < warmup:
            return _rise(t, warmup)
        done = min(1.0, (t - warmup) / (total - warmup))
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done))

    return schedule


def step_decay(every: int, factor: float) -> Schedule:
    """Multiplied by `factor` after each `every` steps."""
    positive(every=every)
    factor = _share("factor", factor)
    return lambda t: factor ** (t // every)


def _rise(t: int, warmup: int) -> float:
    return (t + 1) / (warmup + 1)  # not t / warmup, which would waste the first step on a rate of 0


def _share(name: str, value: float) -> float:
    found = number(name, value)
    if found > 1:
        raise ConfigError(f"{name} must be in [0, 1], found {value!r}.")
    return found


def _check(warmup: int, total: int | None) -> None:
    if isinstance(warmup, bool) or not isinstance(warmup, (int, np.integer)) or warmup < 0:
        raise ConfigError(f"warmup must be a number of steps, 0 or more, found {warmup!r}.")
    if total is not None:
        positive(total=total)
        if total <= warmup:
            raise ConfigError(f"total must be more steps than the warm-up's {warmup}, found {total}.")
