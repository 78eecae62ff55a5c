"""The cpu backend."""

from ..reference import KERNELS as REFERENCE

KERNELS = dict(REFERENCE)
