"""Waiting for a moment without going to sleep.

A thread that sleeps is woken some 30 microseconds late, and often on the processor that the waking thread is busy on, so that the two take
turns instead of running side by side. A worker that has just worked will most likely be needed again at once: it first
looks at a flag for about half a millisecond, outside Python's global lock, and lets other threads have its processor meanwhile.
"""

import sys

import numpy as np
from llvmlite import ir
from numba import config, types
from numba.core import cgutils
from numba.extending import intrinsic

from . import runtime

ROUNDS = 20_000  # about half a millisecond
YIELD = 64  # looks between two offers of the processor to others; without them a waiting thread can keep a working one from running

_switch = types.ExternalFunction("SwitchToThread" if sys.platform == "win32" else "sched_yield", types.int32())


@intrinsic
def _look(typingctx, flags):
    """The first entry of an array of int64, read anew each time."""

    def codegen(context, builder, signature, args):
        array = context.make_array(signature.args[0])(context, builder, args[0])
        return builder.load_atomic(array.data, "acquire", 8)

    return types.int64(flags), codegen


@intrinsic
def _pause(typingctx):
    """Tell an x86 processor that this loop waits."""

    def codegen(context, builder, signature, args):
        if "x86" in builder.module.triple or "i686" in builder.module.triple:
            hint = ir.FunctionType(ir.VoidType(), [])
            builder.call(cgutils.get_or_insert_function(builder.module, hint, "llvm.x86.sse2.pause"), [])
        return context.get_dummy_value()

    return types.void(), codegen


@runtime.jit
def _spin(flag, rounds):
    for i in range(rounds):
        if _look(flag) != 0:
            return True
        _pause()
        if i % YIELD == YIELD - 1:
            _switch()
    return False


def spin(flag: np.ndarray) -> bool:
    """Whether flag[0] becomes other than 0 within about half a millisecond. At once False with the JIT off."""
    return not config.DISABLE_JIT and _spin(flag, ROUNDS)
