"""bfloat16, which NumPy lacks: the upper half of a float32, to and from its bits."""

from __future__ import annotations

import numpy as np

from ..errors import DtypeError


def to_float32(bits: np.ndarray) -> np.ndarray:
    """The numbers of some bits, exactly: uint16 of any shape -> float32."""
    wide = bits.astype(np.uint32)
    wide <<= np.uint32(16)  # in place: weights are large
    return wide.view(np.float32)


def to_bits(array: np.ndarray) -> np.ndarray:
    """The bits of the nearest bfloat16, ties to the even one: float16 or float32 of any shape -> uint16.

    Numbers above its largest become infinite, NaN stays NaN and keeps its sign. Raises DtypeError for other dtypes: float64 rounded to
    float32 and then again may end beside the nearest.
    """
    if array.dtype.newbyteorder("=") not in (np.float16, np.float32):
        raise DtypeError(f"bfloat16 is made of float16 or float32, found {array.dtype}; convert to float32 first")
    single = np.asarray(array, np.float32, order="C")
    bits = single.view(np.uint32)
    half = np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    quiet = (bits | np.uint32(0x400000)) >> np.uint32(16)  # a NaN whose mark lies in the lower half would become infinite, or wrap
    with np.errstate(over="ignore"):
        return np.where(np.isnan(single), quiet, (bits + half) >> np.uint32(16)).astype(np.uint16)
