"""Timing several ways of the same work side by side, so that a drift of the machine hits all alike."""

import time
from collections.abc import Callable, Mapping
from statistics import median, quantiles


def interleaved(ways: Mapping[str, Callable[[], object]], *, rounds: int, warmup: int = 3) -> dict[str, list[float]]:
    """Milliseconds of each way, `rounds` times in turns, after `warmup` untimed turns."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(warmup + rounds):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            if turn >= warmup:
                taken[name].append(1e3 * (time.perf_counter() - start))
    return taken


def summary(times: list[float]) -> tuple[float, float]:
    """The median and the distance between the quartiles."""
    low, _, high = quantiles(times, n=4)
    return median(times), high - low
