"""Waiting for a moment without going to sleep, and work that is handed over meanwhile.

A thread that sleeps is woken some 30 microseconds late, and often on the processor that the waking thread is busy on, so that the two take
turns instead of running side by side. A worker that has just worked will most likely be needed again at once: it first
looks at a flag for about two milliseconds, outside Python's global lock, and lets other threads have its processor meanwhile.

While it looks, it also takes work that needs no Python: a compiled function by its address, left in the worker's mailbox by
another compiled function (`share`). That starts within a microsecond, where a call from Python takes some 25.
"""

import sys

import numpy as np
from llvmlite import ir
from numba import config, types
from numba.core import cgutils
from numba.extending import intrinsic

from . import runtime

ROUNDS = 80_000  # about two milliseconds
YIELD = 64  # looks between two offers of the processor to others; without them a waiting thread can keep a working one from running

# A mailbox: its state, the function, where its part starts and stops, and the function's own argument.
STATE, FUNCTION, START, STOP, ARGUMENT = range(5)
AWAY, WATCHING, TAKEN, SENT, DONE = range(5)

_switch = types.ExternalFunction("SwitchToThread" if sys.platform == "win32" else "sched_yield", types.int32())


def _entry(context, builder, signature, args):
    """A pointer to entry args[1] of the array of int64 args[0]."""
    array = context.make_array(signature.args[0])(context, builder, args[0])
    return builder.gep(array.data, [args[1]])


@intrinsic
def _look(typingctx, flags, place):
    """An entry of an array of int64, read anew each time."""

    def codegen(context, builder, signature, args):
        return builder.load_atomic(_entry(context, builder, signature, args), "acquire", 8)

    return types.int64(flags, types.intp), codegen


@intrinsic
def _set(typingctx, flags, place, value):
    """Write an entry of an array of int64, after all that was written before."""

    def codegen(context, builder, signature, args):
        builder.store_atomic(args[2], _entry(context, builder, signature, args), "release", 8)
        return context.get_dummy_value()

    return types.void(flags, types.intp, types.int64), codegen


@intrinsic
def _swap(typingctx, flags, place, old, new):
    """Replace an entry that is `old` by `new`, as one step; whether it was."""

    def codegen(context, builder, signature, args):
        found = builder.cmpxchg(_entry(context, builder, signature, args), args[2], args[3], "acq_rel", "acquire")
        return builder.extract_value(found, 1)

    return types.boolean(flags, types.intp, types.int64, types.int64), codegen


@intrinsic
def _call(typingctx, function, start, stop, argument):
    """Call the compiled function(start, stop, argument) at an address."""

    def codegen(context, builder, signature, args):
        word = ir.IntType(64)
        kind = ir.FunctionType(ir.VoidType(), [word, word, word]).as_pointer()
        builder.call(builder.inttoptr(args[0], kind), args[1:])
        return context.get_dummy_value()

    n = types.int64
    return types.void(n, n, n, n), codegen


@intrinsic
def _pause(typingctx):
    """Tell an x86 processor that this loop waits."""

    def codegen(context, builder, signature, args):
        if "x86" in builder.module.triple or "i686" in builder.module.triple:
            hint = ir.FunctionType(ir.VoidType(), [])
            builder.call(cgutils.get_or_insert_function(builder.module, hint, "llvm.x86.sse2.pause"), [])
        return context.get_dummy_value()

    return types.void(), codegen


@runtime.jit(inline=True)
def _rest(i):
    _pause()
    if i % YIELD == YIELD - 1:
        _switch()


@runtime.jit
def _spin(flag, rounds):
    for i in range(rounds):
        if _look(flag, 0) != 0:
            return True
        _rest(i)
    return False


def spin(flag: np.ndarray) -> bool:
    """Whether flag[0] becomes other than 0 within about two milliseconds. At once False with the JIT off."""
    return not config.DISABLE_JIT and _spin(flag, ROUNDS)


@runtime.jit
def _serve(flag, mail, rounds):
    _swap(mail, STATE, AWAY, WATCHING)
    i = 0
    while True:
        if _look(mail, STATE) == SENT:
            _call(mail[FUNCTION], mail[START], mail[STOP], mail[ARGUMENT])
            _set(mail, STATE, DONE)
            i = 0
        flagged = _look(flag, 0) != 0
        if (flagged or i >= rounds) and _swap(mail, STATE, WATCHING, AWAY):
            return flagged
        _rest(i)
        i += 1


def serve(flag: np.ndarray, mail: np.ndarray) -> bool:
    """The same as `spin`, but what arrives in the mailbox meanwhile is done, and the time begins anew."""
    return not config.DISABLE_JIT and _serve(flag, mail, ROUNDS)


@runtime.jit(inline=True)
def share(mails, most, function, size, grain, patience, argument):
    """Run the compiled function(start, stop, argument) at an address over range(size), here and on up to `most` workers that watch.

    One contiguous part a thread, none under `grain`; returns how many, when all are done. Workers that do not watch yet are given
    `patience` looks to do so. As in `parallel_for`, a part must own what it writes.
    """
    most = max(0, min(most, size // grain - 1))
    mine, taken, looks = np.zeros(most, np.bool_), 0, 0
    while taken < most:
        for worker in range(most):
            if not mine[worker] and _swap(mails[worker], STATE, WATCHING, TAKEN):
                mine[worker] = True
                taken += 1
        if looks >= patience:
            break
        _rest(looks)
        looks += 1
    part = 0
    for worker in range(most):
        if mine[worker]:
            part += 1
            mail = mails[worker]
            mail[FUNCTION], mail[ARGUMENT] = function, argument
            mail[START], mail[STOP] = size * part // (taken + 1), size * (part + 1) // (taken + 1)
            _set(mail, STATE, SENT)
    _call(function, 0, size // (taken + 1), argument)
    for worker in range(most):
        if mine[worker]:
            i = 0
            while _look(mails[worker], STATE) != DONE:
                _rest(i)
                i += 1
            _set(mails[worker], STATE, WATCHING)
    return taken + 1
