"""What follows from several results together: how time grows with threads, depth and batch."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

ONE = "-one-thread"
JAVA_MS = 310  # the TinyAI LoRA module's published figure for `java-forward`, on one thread


def growth(sizes: Sequence[float], times: Sequence[float]) -> tuple[float, float]:
    """The exponent p of time ~ size^p, and how far, in parts, a time is at most from the straight line a + b size.

    The line is fitted to parts, not to seconds, so that small sizes count like large ones.
    """
    sizes, times = np.asarray(sizes, float), np.asarray(times, float)
    exponent = np.polyfit(np.log(sizes), np.log(times), 1)[0]
    parts = np.stack([np.ones_like(sizes), sizes], 1) / times[:, None]
    line, *_ = np.linalg.lstsq(parts, np.ones_like(times), rcond=None)
    return float(exponent), float(np.abs(parts @ line - 1).max())


def follows(results: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """A line for each thing that the results at hand tell together."""
    times = {result["case"]: result["ours_ms"] for result in results}
    threads = {result["case"]: result["threads"] for result in results}
    for case in times:
        whole = case.removesuffix(ONE)
        if case != whole and whole in times:
            yield f"{whole}: {times[case] / times[whole]:.2f} times as fast on {threads[whole]} threads as on one"
        if case.startswith("java-forward"):
            yield f"{case}: {JAVA_MS / times[case]:.0f} times as fast as the Java module's {JAVA_MS} ms on one thread"
    for kind in ("depth", "batch"):
        sizes = {int(case.split("-")[1]): time for case, time in times.items() if case.startswith(f"{kind}-")}
        if len(sizes) > 2:
            exponent, off = growth(list(sizes), list(sizes.values()))
            yield f"{kind} {min(sizes)} to {max(sizes)}: time ~ {kind}^{exponent:.2f}, at most {off:.0%} off a straight line"
