"""A process that works on one way of a case and reports: `python -m benchmarks.worker`, spoken to by `processes.py`.

Messages are pickled tuples on its standard input, answers pickled on its standard output: ("done", value) or ("failed", text).
"""

import os
import pickle
import sys
import time
import traceback
import tracemalloc
from typing import Any

from .case import Case, Step
from .memory import memory


class Worker:
    """What a process can be asked to do."""

    step: Step

    def build(self, case: Case, way: str) -> float:
        """Make a step and take it three times, of which the last is told: seconds."""
        threads = int(os.environ["OMP_NUM_THREADS"])
        if way in ("peft", "floor by torch"):
            import torch

            torch.set_num_threads(threads)
        self.step = case.step(way)
        return 1e-3 * self.block(1, 0.0, 2)[0]

    def block(self, rounds: int, warm: float, least: int = 1) -> list[float]:
        """Milliseconds of that many steps, after untimed ones for `warm` seconds and at least `least`."""
        until = time.perf_counter() + warm
        while least > 0 or time.perf_counter() < until:
            self.step()
            least -= 1
        taken = []
        for _ in range(rounds):
            start = time.perf_counter()
            self.step()
            taken.append(1e3 * (time.perf_counter() - start))
        return taken

    def allocations(self, case: Case) -> int:
        """The most bytes that a step of loratk holds beyond what was there before it, once it has come to rest."""
        self.build(case, "ours")
        tracemalloc.start()
        for _ in range(3):
            self.step()
        tracemalloc.reset_peak()
        before, _ = tracemalloc.get_traced_memory()
        self.step()
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return peak - before

    def memory(self, case: Case, way: str) -> Any:
        """See `memory.memory`."""
        return memory(case, way)


def main() -> None:
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints goes elsewhere
    worker = Worker()
    while True:
        try:
            message, *arguments = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            answer = "done", getattr(worker, message)(*arguments)
        except Exception:
            answer = "failed", traceback.format_exc()
        answers.write(pickle.dumps(answer))
        answers.flush()


if __name__ == "__main__":
    main()
