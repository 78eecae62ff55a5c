"""Timing several ways of the same work side by side, so that a drift of the machine hits all alike.

Each way runs in a process of its own. In one process, in turns of a step each, the threads of PyTorch and of OpenBLAS watch for
more work for a while after theirs, and whatever comes next pays for it: a classifier's step took 0.52 ms by loratk and 1.04 by PEFT
instead of 0.19 and 0.47 alone, and its bare products 2.5 instead of 0.02. Processes that take turns of a step still disturb
each other (64 rows against 1024x1024: 1.8 ms instead of 0.9), those that take turns in blocks of steps do not.

So: ways take turns in blocks. Before a block all is quiet for PAUSE seconds, so that the threads of the way before are asleep, and the
first WARM seconds of a block are not timed, as threads have to wake and spread over the processors. The order of ways is
reversed from one turn to the next.
"""

import time
from collections.abc import Sequence
from statistics import median, quantiles

from .case import Case
from .processes import Remote

PAUSE = 0.05
WARM = 0.1
TIMED = 0.12  # seconds of a block that count
MOST = 300  # steps in a block


def in_turns(case: Case, ways: Sequence[str], workers: dict[str, Remote], *, turns: int) -> dict[str, list[float]]:
    """Milliseconds of each step of each way, in that many turns."""
    rounds = {}
    for way in ways:
        once = workers[way].ask("build", case, way)
        rounds[way] = min(MOST, max(2, round(TIMED / once)))
    taken: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(turns):
        for way in ways if turn % 2 == 0 else reversed(ways):
            time.sleep(PAUSE)
            taken[way] += workers[way].ask("block", rounds[way], WARM)
    return taken


def summary(times: Sequence[float]) -> tuple[float, float]:
    """The median and the distance between the quartiles."""
    low, _, high = quantiles(times, n=4)
    return median(times), high - low
