"""Is there a GPU, and how a kernel is started on it.

Numba's simulator (NUMBA_ENABLE_CUDASIM=1) runs each GPU thread as a Python thread, so blocks are small there and
everything else is the same.
"""

import contextlib
import math
import sys
import threading
import warnings

import numpy as np

from ...errors import BackendError

try:
    from numba import config, cuda
except ImportError as error:  # the CUDA target may be left out of an installation of Numba
    raise BackendError("The backend 'cuda' needs numba.cuda, which this Numba lacks: install numba-cuda.") from error

SIMULATED = bool(config.ENABLE_CUDASIM)

if not cuda.is_available():
    raise BackendError(
        "The backend 'cuda' found no usable NVIDIA GPU: no driver, no device, or no CUDA toolkit to compile with. "
        "Use the backend 'cpu'; or install a driver and the toolkit; or set NUMBA_ENABLE_CUDASIM=1 before Python "
        "starts, to try the kernels slowly on a CPU."
    )

config.CUDA_LOW_OCCUPANCY_WARNINGS = 0  # a small array is no fault of the caller

THREADS = 32 if SIMULATED else 256  # a block of independent elements
LANES = 8 if SIMULATED else 128  # a block that works on one row; a power of two
TILE = 4 if SIMULATED else 16  # the side of a block that computes a piece of a matrix product

# NumPy's functions follow IEEE 754 where Python's raise; on the device both are the same instructions.
_functions = np if SIMULATED else math
cos, exp, log, sin, sqrt, tanh = (getattr(_functions, name) for name in ("cos", "exp", "log", "sin", "sqrt", "tanh"))

_simulating = threading.Lock()
_allocating = threading.Lock()


def _shared_array(self, shape, dtype):
    """A block's shared array, by the line that asks for it: the simulator's own makes two if two threads ask at once."""
    frame = sys._getframe(1)
    place = frame.f_code.co_filename, frame.f_lineno
    with _allocating:
        if place not in self._allocations:
            self._allocations[place] = np.empty(shape, dtype)
        return self._allocations[place]


if SIMULATED:
    from numba.cuda.simulator.kernelapi import FakeCUDAShared

    FakeCUDAShared.array = _shared_array


@contextlib.contextmanager
def _simulator():
    """The simulator runs one kernel at a time, waits by polling, and would report IEEE 754's special values."""
    interval = sys.getswitchinterval()
    with _simulating, warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        sys.setswitchinterval(1e-4)
        try:
            yield
        finally:
            sys.setswitchinterval(interval)


def launch_blocks(kernel, blocks, block, *args):
    """Run a kernel on so many blocks of `block` threads; an empty grid, which CUDA refuses, runs nothing."""
    if blocks:
        with _simulator() if SIMULATED else contextlib.nullcontext():
            kernel[blocks, block](*args)


def launch(kernel, size, *args):
    """Run a kernel on at least `size` threads, one an element."""
    launch_blocks(kernel, -(-size // THREADS), THREADS, *args)
