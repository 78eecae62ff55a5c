"""What loratk mends in Numba's simulator."""

import os
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from loratk import get_backend

pytestmark = [
    pytest.mark.kernels,
    pytest.mark.skipif(os.environ.get("NUMBA_ENABLE_CUDASIM") != "1", reason="needs the simulator"),
    pytest.mark.skipif(os.environ.get("NUMBA_DISABLE_JIT") == "1", reason="the CUDA kernels cannot run with the JIT off"),
]


def test_the_threads_of_a_block_share_one_array(monkeypatch):
    get_backend("cuda")
    from numba.cuda.simulator.kernelapi import FakeCUDAShared

    empty = np.empty

    def slow(*arguments):
        time.sleep(0.01)
        return empty(*arguments)

    monkeypatch.setattr(np, "empty", slow)
    shared = FakeCUDAShared(0)

    def ask(_):
        return shared.array(4, np.float32)

    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(ask, range(8)))
    assert all(array is got[0] for array in got)
    assert shared.array(4, np.float32) is not got[0]  # another line, another array
