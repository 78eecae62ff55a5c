"""Compile all that the kernels of the CUDA backend would launch on their examples, for a GPU that is not there.

Numba's simulator checks no types; this does. Arrays are NumPy's in disguise and nothing runs. Prints one line a kernel
that does not compile, or that computes float32 in float64. Exits with 77, saying why, where Numba cannot compile for
a GPU at all.
"""

import re
import sys
from types import SimpleNamespace

import numpy as np
from numba import cuda, from_dtype, typeof, types
from numba.cuda import dispatcher

CAPABILITY = (7, 5)
# The arguments of sines are reduced in float64 by CUDA's own library.
DOUBLE = {"cos", "sin"}


class Disguised:
    """What the kernels ask of a device array, in the memory of the host."""

    __cuda_ndarray__ = True

    def __init__(self, shape, dtype):
        self.host = np.zeros(shape, dtype)

    def __getattr__(self, name):
        return getattr(self.host, name)

    def is_c_contiguous(self):
        return self.host.flags.c_contiguous

    def reshape(self, shape):
        out = Disguised((), self.dtype)
        out.host = self.host.reshape(shape)
        return out

    def copy_to_device(self, host):
        self.host[...] = host

    def copy_to_host(self):
        return self.host.copy()


def ptx(function, signature):
    return cuda.compile_ptx(function, signature, cc=CAPABILITY)[0]


def set_one(x):
    x[0] = 1


try:
    ptx(set_one, (types.float32[::1],))
except Exception as error:
    print(f"Numba cannot compile for CUDA here: {error}")
    sys.exit(77)

cuda.is_available = lambda: True
cuda.device_array = Disguised
dispatcher.get_current_device = lambda: SimpleNamespace(compute_capability=CAPABILITY)

from loratk.kernels import get_backend  # noqa: E402
from loratk.testing.kernels import EXAMPLES, Frozen  # noqa: E402

compiled = {}


def compile_only(kernel, blocks, block, *args):
    signature = tuple(types.Array(from_dtype(arg.dtype), arg.ndim, "C") if isinstance(arg, Disguised) else typeof(arg) for arg in args)
    if (kernel, signature) not in compiled:
        compiled[kernel, signature] = ptx(kernel.py_func, signature)
    launched.append(compiled[kernel, signature])


backend = get_backend("cuda")
for module in [module for name, module in sys.modules.items() if name.startswith("loratk.kernels.cuda.")]:
    if hasattr(module, "launch_blocks"):
        module.launch_blocks = compile_only

for name, kernel in backend.kernels.items():
    for dtype in (np.float32, np.float64):
        launched = []
        for args, options in EXAMPLES[name](np.random.default_rng(0), dtype, 3):
            moved = [
                arg if arg is None else backend.freeze_weight(arg.array) if isinstance(arg, Frozen) else backend.asarray(arg)
                for arg in args
            ]
            try:
                kernel(*moved, **options)
            except Exception as error:
                print(f"{name} in {dtype.__name__} does not compile: {type(error).__name__}: {error}")
                break
        narrow = dtype is np.float32 and name not in DOUBLE | {"sum_squares"}
        if narrow and any(re.search(r"\.f64\b", text) for text in launched):
            print(f"{name} computes float32 in float64.")
print(f"compiled {len(compiled)}", file=sys.stderr)
