"""The kernels on all cores of the CPU: Numba where that pays, NumPy where it is as fast.

One file a family, like the reference, whose kernel stands wherever a family here names no other.
"""

from types import ModuleType

from .. import reference
from . import chain, conv, direct, dora, elementwise, frozen, gemm, grouped, lora, norm, optim, reduce, shape, softmax, sparse

FAMILIES: tuple[ModuleType, ...] = (
    gemm,
    frozen,
    lora,
    dora,
    chain,
    grouped,
    elementwise,
    reduce,
    shape,
    sparse,
    softmax,
    norm,
    conv,
    direct,
    optim,
)
KERNELS = reference.KERNELS | {name: getattr(family, name) for family in FAMILIES for name in family.__all__}
