"""The floor: bare matrix products into arrays that are there already, or, where memory decides, reading the weight once."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from .case import Step, normal


def products(rows: int, pairs: Sequence[tuple[int, int]], library: str, *, back: Sequence[tuple[int, int]] = ()) -> Step:
    """x W for each weight (d, k), then g W^T for the last of them, those in `back`, in reverse; by that library's BLAS."""
    weights = [normal(at, d, k) for at, (d, k) in enumerate(pairs)]
    factors = [(normal(0, rows, len(weight)), weight) for weight in weights]
    factors += [(normal(1, rows, weight.shape[1]), weight.T) for weight in reversed(weights[len(pairs) - len(back) :])]
    calls: list[Any] = [(left, right, np.empty((rows, right.shape[1]), np.float32)) for left, right in factors]
    multiply: Any = np.matmul
    if library == "torch":
        import torch

        multiply = torch.mm
        calls = [tuple(map(torch.from_numpy, call)) for call in calls]

    def step() -> None:
        for left, right, out in calls:
            multiply(left, right, out=out)

    return step


def read(entries: int, threads: int) -> Step:
    """Reading that many float32 once, shared out over the threads: the bandwidth of the memory."""
    import numba

    @numba.njit(nogil=True, fastmath=True)
    def total(part):
        result = np.float32(0)
        for at in range(part.size):  # not over the array itself, which does not vectorise
            result += part[at]
        return result

    parts = np.array_split(np.ones(entries, np.float32), threads)
    pool = ThreadPoolExecutor(threads)

    def step() -> float:
        others = [pool.submit(total, part) for part in parts[1:]]
        return total(parts[0]) + sum(other.result() for other in others)

    return step
