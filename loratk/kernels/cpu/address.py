"""Arrays by their address, for compiled loops over a number of arrays that is not known when they are compiled."""

import ctypes

import numpy as np
from numba import carray, config, types
from numba.extending import intrinsic

from .. import runtime


def address(array):
    """Where a contiguous array begins. Whoever keeps the number must keep the array too."""
    return array.__array_interface__["data"][0]


@intrinsic
def _pointer(typingctx, where, like):
    """A number as a pointer to entries of `like`'s dtype."""

    def codegen(context, builder, signature, args):
        return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

    return types.CPointer(like.dtype)(types.intp, like), codegen


@runtime.jit(inline=True)
def _compiled(where, size, like):
    return carray(_pointer(where, like), (size,))


def _plain(where, size, like):
    return np.frombuffer((ctypes.c_char * (int(size) * like.itemsize)).from_address(int(where)), like.dtype)


array_at = _plain if config.DISABLE_JIT else _compiled
"""array_at(where, size, like): the one-dimensional array of so many entries of `like`'s dtype that begins at an address."""

WORDS, SINGLE, DOUBLE = np.zeros(1, np.int64), np.zeros(1, np.float32), np.zeros(1, np.float64)
"""What `array_at` takes as `like`."""
