"""From starting a process to the end of its first training step, with an empty cache of compiled kernels and with a full one."""

import os
import pickle
import subprocess
import sys
import tempfile
import time

from .case import Case
from .processes import ROOT, environment


def first_step(case: Case, way: str, threads: int, cache: str) -> float:
    """Milliseconds of a whole process that takes one step."""
    start = time.perf_counter()
    command, variables = [sys.executable, "-m", "benchmarks.start_up", way], environment(threads, NUMBA_CACHE_DIR=cache)
    subprocess.run(command, cwd=ROOT, env=variables, input=pickle.dumps(case), check=True, stdout=subprocess.DEVNULL)
    return 1e3 * (time.perf_counter() - start)


def start_up(case: Case, threads: int, *, peer: bool, turns: int) -> dict[str, dict[str, list[float]]]:
    """Milliseconds by kind of start, "cold" or "warm", and way. Only loratk has something to compile."""
    taken: dict[str, dict[str, list[float]]] = {"cold": {"ours": []}, "warm": {"ours": [], **({"peft": []} if peer else {})}}
    for _ in range(turns):
        with tempfile.TemporaryDirectory() as cache:
            taken["cold"]["ours"].append(first_step(case, "ours", threads, cache))
            for way, times in taken["warm"].items():
                times.append(first_step(case, way, threads, cache))
    return taken


if __name__ == "__main__":
    if sys.argv[1] == "peft":
        import torch

        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    pickle.load(sys.stdin.buffer).step(sys.argv[1])()
