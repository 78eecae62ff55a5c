"""The kernels on an NVIDIA GPU, in numba.cuda: the names, shapes and dtypes of the NumPy reference.

Arrays are numba.cuda device arrays, C-contiguous; NumPy arrays given to a kernel are moved there first. Results
depend on the sizes alone, to the last bit: every sum is taken in a fixed order, without atomics. Importing this
package without a driver raises BackendError, unless NUMBA_ENABLE_CUDASIM=1 asks for Numba's simulator.
"""

from . import chain, conv, dora, elementwise, gemm, grouped, lora, norm, optim, reduce, shape, softmax, sparse
from .arrays import asarray, numpy

__all__ = ["KERNELS", "asarray", "numpy"]

FAMILIES = (gemm, lora, dora, chain, grouped, elementwise, reduce, shape, sparse, softmax, norm, conv, optim)
KERNELS = {name: getattr(family, name) for family in FAMILIES for name in family.__all__}
