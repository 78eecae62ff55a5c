"""Grouped low-rank updates: rows sorted by adapter, each adapter's rows in a few pieces, pieces shared out over the threads.

Segments of equal adapter as in Chen et al. 2023 (Punica), and factors of any rank where they lie, not copied together, so that a training
step may change them in place: what is kept from call to call are their addresses.
"""

import weakref
from collections import OrderedDict
from operator import is_

import numpy as np
from numba import config

from .. import runtime
from ..memory import empty
from ..reference.grouped import check_rows, groups_of, widest
from . import grouped_grad as grad
from . import grouped_loops as loops
from .address import address
from .tile import columns

__all__ = ["grouped_lora", "grouped_lora_grad"]

GRAIN = 1 << 18  # multiplications a thread must get for its waking to pay
PATIENT = 1 << 11  # for how many multiplications to wait one look for a sleeping worker
KEPT = 1024  # plans


class _Plan:
    """The table of the adapters of a group, and what it was made from."""

    def __init__(self, factors, scalings, d, k, dtype):
        groups = groups_of(factors, d, k)
        self.scalings, self.options, self.d, self.k = np.array(scalings, dtype), scalings, d, k
        self.width, self.stretched = widest(groups)
        self.table = table = np.zeros((len(groups), 9), np.int64)
        self.arrays, self.shapes = [], []  # those whose addresses stand in the table; shapes and places of gradients
        grads = 0
        for row, (a, b, t, shift) in zip(table, groups, strict=True):
            row[loops.R] = 0 if a is None else a.shape[1]
            for array, here, place in zip(
                (a, b, t, shift), (loops.A, loops.B, loops.STRETCH, loops.SHIFT), range(loops.DA, 9), strict=True
            ):
                if array is not None:
                    self.arrays.append(np.ascontiguousarray(array, dtype))
                    row[here], row[place] = address(self.arrays[-1]) if array.size else 0, grads
                    self.shapes.append((grads, grads + array.size, array.shape))
                    grads += array.size
        self.grads = grads
        self.refs = []  # empty where values were copied, which may change
        if all(map(is_, [each for each in factors if each is not None], self.arrays)):
            self.refs = [_none if each is None else weakref.ref(each) for each in factors]

    def made_of(self, factors, scalings):
        """Whether it was made of these."""
        return self.options == scalings and all(map(is_, [ref() for ref in self.refs], factors))


def _none():
    """What stands for a reference to None; that an array is gone and None in its place is told by the key of a plan."""


_plans: OrderedDict[tuple[int, ...], _Plan] = OrderedDict()


def _plan(factors, scalings, d, k, dtype):
    """The plan of these factors and the copies it needs alive; kept by what they are while they live, where none had to be made."""
    key = tuple(map(id, factors))
    plan = _plans.get(key)
    if plan is not None and (plan.d, plan.k) == (d, k) and plan.made_of(factors, scalings):
        return plan, ()
    plan = _Plan(factors, scalings, d, k, dtype)
    held, plan.arrays = plan.arrays, ()
    if plan.refs:
        _plans[key] = plan
        while len(_plans) > KEPT:
            _plans.popitem(last=False)
    return plan, held


def _flat(*arrays):
    """Arrays as compiled loops take them, an empty one for None."""
    dtype = arrays[0].dtype
    return [np.empty(0, dtype) if each is None else np.ascontiguousarray(each).reshape(-1) for each in arrays]


def grouped_lora(product, x, index, mask, bias, *factors, scalings):
    """What each row's own adapter makes of it: (n, k), (n, d), integers (n,) -> (n, k), (n, width), (n, k) or (0, k).

    See the reference for what `factors` are.
    """
    (n, k), d, dtype = product.shape, x.shape[-1], product.dtype
    plan, held = _plan(factors, scalings, d, k, dtype)
    check_rows(product, x, index, mask, bias, len(plan.table))
    nr = columns(dtype)
    order, _, pieces, done = loops.arrange(np.ascontiguousarray(index, np.int64), plan.table, nr // 2, d + k)
    y, z, xa = empty((n, k), dtype), empty((n if plan.stretched else 0, k), dtype), empty((n, plan.width), dtype)
    given = done, pieces, order, plan.table, plan.scalings, *_flat(product, x, mask, bias)
    made = y.reshape(-1), z.reshape(-1), xa.reshape(-1)
    work, sizes = int(done[-1]), (d, k, plan.width, nr // 2, nr)
    if config.DISABLE_JIT:
        loops.forward(0, work, *given, *made, *sizes)
    elif work:
        mails, workers = runtime.mailboxes()
        function = (loops.forward_double if dtype == np.float64 else loops.forward_single)()
        loops.share_forward(mails, workers, function, GRAIN, int(work / PATIENT), *given, *made, *sizes)
    del held  # copies live until here
    return y, xa, z


def grouped_lora_grad(g, x, xa, z, index, mask, *factors, scalings, need_x=True):
    """Gradients of `grouped_lora` for the product, x (None if not `need_x`), then A, B, stretch and shift of each adapter that has them."""
    (n, k), d, dtype = g.shape, x.shape[1], g.dtype
    plan, held = _plan(factors, scalings, d, k, dtype)
    nr, width = columns(dtype), plan.width
    order, starts, pieces, done = loops.arrange(np.ascontiguousarray(index, np.int64), plan.table, nr // 2, d + k)
    gz, dx, out = (empty(shape, dtype) for shape in ((n if plan.stretched else 0, k), (n if need_x else 0, d), (plan.grads,)))
    inner = [empty((n * size + nr,), dtype) for size in (d, k, width, width)]  # tiles read whole vectors
    flat_g, flat_x, flat_xa, flat_mask, flat_z = _flat(g, x, xa, mask, z)
    given = done, pieces, order, plan.table, plan.scalings, flat_g, flat_x, flat_xa, flat_mask, gz.reshape(-1), dx.reshape(-1), *inner
    runtime.parallel_for(grad.backward, int(done[-1]), *given, d, k, width, nr // 2, nr, grain=GRAIN)
    shares, done = grad.shares_of(starts, plan.table, d + k)
    given = done, shares, starts, order, plan.table, flat_g, flat_z, *inner, out
    runtime.parallel_for(grad.gradients, int(done[-1]), *given, d, k, width, nr, grain=GRAIN)
    del held
    grads = [out[start:stop].reshape(shape) for start, stop, shape in plan.shapes]
    return gz if plan.stretched else np.array(g), dx if need_x else None, *grads
