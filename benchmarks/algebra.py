"""python -m benchmarks.algebra [--json FILE]: truncating an update by its factors, beside the dense decomposition that others use.

Both ways work on one update of rank r and give the best pair of half that rank. They take turns in one process, in which BLAS has one
thread: a QR decomposition of thin factors is so short that threads cost more than they give, and their times vary.
"""

import os

if __name__ == "__main__":  # before NumPy loads its BLAS
    os.environ |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import TypeVar

import numpy as np

from loratk.algebra.rounding import Rounded, rounded
from loratk.exchange.factors import Pair, nearest_pair

T = TypeVar("T")
SIZES = ((1024, 1024, 16), (4096, 4096, 16), (1024, 1024, 64))
DENSE_UP_TO = 1024
"""Larger weights take a dense decomposition minutes."""


def by_factors(pair: Pair, rank: int) -> Rounded:
    """The way of loratk."""
    return rounded(pair, rank=rank)


def dense(pair: Pair, rank: int) -> Pair:
    """The way over the matrix: its singular values, and the best pair."""
    return nearest_pair(pair[0] @ pair[1], rank)


def case(d: int, k: int, r: int, turns: int) -> dict[str, object]:
    """The times of both ways in milliseconds, in turns, and how far their results are apart, relatively; no dense way for large ones."""
    rng = np.random.default_rng(0)
    pair = rng.standard_normal((d, r)), rng.standard_normal((r, k))
    taken: dict[str, list[float]] = {"factors": [], "dense": []}
    got: Rounded | None = None
    want: Pair | None = None
    for _ in range(turns):
        got = _timed(lambda: by_factors(pair, r // 2), taken["factors"], 20)
        if min(d, k) <= DENSE_UP_TO:
            want = _timed(lambda: dense(pair, r // 2), taken["dense"], 1)
    result: dict[str, object] = {"case": f"truncate-{d}x{k}-r{r}", "factors_ms": median(taken["factors"])}
    if want is None or got is None:
        return result
    matrix = want[0] @ want[1]
    apart = float(np.linalg.norm(matrix - got.pair[0] @ got.pair[1]) / np.linalg.norm(matrix))
    ratio = median(taken["dense"]) / median(taken["factors"])
    return result | {"dense_ms": median(taken["dense"]), "ratio": ratio, "apart": apart}


def _timed(work: Callable[[], T], taken: list[float], times: int) -> T:
    for _ in range(times):
        start = time.perf_counter()
        done = work()
        taken.append(1e3 * (time.perf_counter() - start))
    return done


def line(found: dict[str, object]) -> str:
    """A case as text."""
    text = f"{found['case']}: {found['factors_ms']:.2f} ms by factors"
    if "dense_ms" in found:
        text += f", {found['dense_ms']:.0f} ms dense, {found['ratio']:.0f} times; the results are {found['apart']:.0e} apart"
    return text


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.algebra", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the times: a list of objects, one a case")
    parser.add_argument("--turns", type=int, default=5, metavar="N", help="how many turns each way gets (default 5)")
    chosen = parser.parse_args()
    print("medians, one thread, in turns", flush=True)
    results = []
    for size in SIZES:
        results.append(case(*size, chosen.turns))
        print(line(results[-1]), flush=True)
    if chosen.json:
        chosen.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
