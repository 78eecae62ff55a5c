"""A chain of LoRA linear layers with ReLU between them, forward and backward, as one compiled call a thread.

A small network is bound by launches and by calls from Python. Rows do not depend on each other, so a thread takes its share of
the rows through all layers without waiting for anybody: one launch forward, one backward. Only the gradients of A and B sum over
all rows; they are a second launch, shared out by what they write. Layers are told by a table of sizes and addresses, so
that one compiled function serves chains of any length.
"""

import weakref
from operator import is_

import numpy as np
from numba import config

from .. import runtime
from ..memory import empty
from ..reference.chain import check_input, layers_of
from ..spin import share
from .address import DOUBLE, SINGLE, WORDS, address, array_at
from .factor_grad import gradient_a, gradient_b
from .gemm import MR, ROWS, block, pack_rows
from .pack import DEPTH
from .thin import STRIP
from .thin import dots_loop as dots
from .tile import columns
from .window import TALL, narrow_tile

__all__ = ["lora_chain", "lora_chain_grad"]

# The columns of the table, a row a layer; places are counted in entries for each row of the batch, in gradients in entries.
D, K, R, RELU, FORWARD, BACKWARD, BIAS, A, B, Y, XA, G, GB, DA, DB, WIDTH = range(16)
SHARES = 16  # parts into which the gradients of each layer are cut
NEAR = 24  # units of rows that go through all layers before the next, so that what one layer leaves the next finds in the cache
ALONE = 1 << 17  # multiplications a thread must get for handing them over to pay
PLANS = 32  # kept with a weight
PATIENT = 1 << 11  # for how many multiplications to wait one look for a sleeping worker: half the time they take alone


@runtime.jit(inline=True)
def _longer(a, size):
    """The first entries of an array of so many, with zeros behind: for tiles, which read whole vectors."""
    out = np.empty(size, a.dtype)
    out[: a.size] = a
    out[a.size :] = 0
    return out


@runtime.jit(inline=True)
def _turned_panels(a, d, r, nr):
    """The transpose of A (d, r), as `_panels` has it."""
    out = np.zeros((d + nr - 1) // nr * r * nr, a.dtype)
    for p in range(d):
        panel = out[p // nr * nr * r :]
        at = p % nr
        for q in range(r):
            panel[q * nr + at] = a[p * r + q]
    return out


@runtime.jit(inline=True)
def _times_thin(x, d, a, r, out, width, first, last, half):
    """Rows first to last of x A, filled up with zeros: (n, d), (d, r) -> (n, width)."""
    if r % half:
        a = _longer(a, d * r + half)
    for i in range(first, last, TALL):
        if last - first >= TALL:
            i = min(i, last - TALL)  # the last tile may take some rows again
            for j in range(0, r, half):
                narrow_tile(x, i * d, d, 1, 0, 1, a, j, r, d, out, i * width + j, width, 0)
        else:
            for row in range(i, last):
                for j in range(r):
                    total = x.dtype.type(0)
                    for p in range(d):
                        total += x[row * d + p] * a[p * r + j]
                    out[row * width + j] = total
    for row in range(first, last):
        for j in range(r, width):
            out[row * width + j] = 0


@runtime.jit(inline=True)
def _product(x, d, w, low_a, rp, factor, low_b, low_jump, low_step, r, out, k, first, last, nr, packed, low_packed, edge):
    """Rows first to last of x W + factor low_a low_b: W packed, low_a (n, rp) of which r columns count, low_b as in `block`."""
    panels = (k + nr - 1) // nr
    for i0 in range(first, last, ROWS):
        tall = min(ROWS, last - i0)
        pack_rows(low_a, rp, 1, i0, tall, 0, r, low_packed)
        if factor != 1:
            low_packed *= factor
        for p0 in range(0, d, DEPTH):
            kk = min(DEPTH, d - p0)
            pack_rows(x, d, 1, i0, tall, p0, kk, packed)
            terms = r if p0 + DEPTH >= d else 0
            at, add = p0 * panels * nr, 1 if p0 > 0 else 0
            block(packed, w, at, low_packed, low_b, low_jump, low_step, terms, out, edge, i0, tall, 0, panels, k, nr, kk, add)


@runtime.jit
def _forward(start, stop, unit, x, table, scalings, kept, y, n, nr):
    """Units of `unit` rows through all layers."""
    first, last, half, layers = start * unit, min(stop * unit, n), nr // 2, len(table)
    widest = 0
    for i in range(layers):
        widest = max(widest, table[i, D])
    packed, edge = np.empty((min(ROWS, last - first) + MR) * min(DEPTH, widest), x.dtype), np.empty(MR * nr, x.dtype)
    zero, source = x.dtype.type(0), x
    for i in range(layers):
        d, k, r, rp = table[i, D], table[i, K], table[i, R], table[i, WIDTH]
        out = y if i == layers - 1 else kept[table[i, Y] * n : (table[i, Y] + k) * n]
        w = array_at(table[i, FORWARD], (k + nr - 1) // nr * nr * d, x)
        xa = kept[table[i, XA] * n : (table[i, XA] + rp) * n]
        if r:
            _times_thin(source, d, array_at(table[i, A], d * r, x), r, xa, rp, first, last, half)
        low_b = array_at(table[i, B], r * k, x)
        if r and k % nr:
            low_b = _longer(low_b, r * k + nr)
        low_packed = np.empty((min(ROWS, last - first) + MR) * r, x.dtype)
        _product(source, d, w, xa, rp, scalings[i], low_b, nr, k, r, out, k, first, last, nr, packed, low_packed, edge)
        bias, relu = array_at(table[i, BIAS], k if table[i, BIAS] else 0, x), table[i, RELU]
        for row in range(first, last):
            line = out[row * k : (row + 1) * k]
            if bias.size and relu:
                for j in range(k):
                    shifted = line[j] + bias[j]
                    line[j] = zero if shifted < zero else shifted
            elif bias.size:
                for j in range(k):
                    line[j] += bias[j]
            elif relu:
                for j in range(k):
                    line[j] = zero if line[j] < zero else line[j]
        source = out


@runtime.jit(inline=True)
def _mask(g, y):
    """Set g to 0 where y is not above 0; in place and of two arrays, as with a third that may be the first it is compiled to guesses."""
    zero = g.dtype.type(0)
    for i in range(g.size):
        g[i] = g[i] if y[i] > zero else zero


@runtime.jit
def _backward(start, stop, unit, g, y, table, scalings, kept, held, dx, n, nr):
    """Units of `unit` rows of the gradients of all layers' results, and of gb = scaling g B^T, into `held`."""
    first, last, layers = start * unit, min(stop * unit, n), len(table)
    widest = 0
    for i in range(layers):
        widest = max(widest, table[i, K])
    packed, edge = np.empty((min(ROWS, last - first) + MR) * min(DEPTH, widest), g.dtype), np.empty(MR * nr, g.dtype)
    for i in range(layers - 1, -1, -1):
        d, k, r, rp = table[i, D], table[i, K], table[i, R], table[i, WIDTH]
        if i == layers - 1 and not table[i, RELU]:
            above = g
        else:
            above = held[table[i, G] * n : (table[i, G] + k) * n]
        part = slice(first * k, last * k)
        if table[i, RELU]:
            if i == layers - 1:
                above[part] = g[part]
            _mask(above[part], y[part] if i == layers - 1 else kept[table[i, Y] * n : (table[i, Y] + k) * n][part])
        gb = held[table[i, GB] * n : (table[i, GB] + rp) * n]
        if r:
            b = array_at(table[i, B], r * k, g)
            full = (r + 3) // 4 * 4
            lines = np.zeros(full * k, g.dtype)
            for j in range(r * k):
                lines[j] = b[j] * scalings[i]
            rows = last - first
            mine = gb[first * rp : last * rp].reshape(rows, rp)
            dots(0, (rows + 3) // 4, above[part].reshape(rows, k), lines.reshape(full, k), mine, r)
        if i > 0 or dx.size:
            out = held[table[i - 1, G] * n : (table[i - 1, G] + d) * n] if i > 0 else dx
            w = array_at(table[i, BACKWARD], (d + nr - 1) // nr * nr * k, g)
            low_b = _turned_panels(array_at(table[i, A], d * r, g), d, r, nr)
            low_packed = np.empty((min(ROWS, last - first) + MR) * r, g.dtype)
            one = g.dtype.type(1)
            _product(above, k, w, gb, rp, one, low_b, r * nr, nr, r, out, d, first, last, nr, packed, low_packed, edge)


@runtime.jit
def _gradients(start, stop, x, g, table, scalings, kept, held, out, n, nr):
    """Shares start to stop of SHARES of the gradients of all A and B."""
    layers, edge, last = len(table), np.empty(MR * nr, x.dtype), np.zeros(STRIP * nr, x.dtype)
    for i in range(layers):
        d, k, r, rp = table[i, D], table[i, K], table[i, R], table[i, WIDTH]
        if r:
            source = x if i == 0 else kept[table[i - 1, Y] * n : (table[i - 1, Y] + d) * n]
            above = g if i == layers - 1 and not table[i, RELU] else held[table[i, G] * n : (table[i, G] + k) * n]
            gb, xa = held[table[i, GB] * n : (table[i, GB] + rp) * n], kept[table[i, XA] * n : (table[i, XA] + rp) * n]
            da, db = out[table[i, DA] : table[i, DA] + d * r], out[table[i, DB] : table[i, DB] + r * k]
            tall, wide = (d + TALL - 1) // TALL, (k + nr - 1) // nr
            top, bottom, left, right = tall * start // SHARES, tall * stop // SHARES, wide * start // SHARES, wide * stop // SHARES
            for p0 in range(0, n, STRIP):
                rows = min(STRIP, n - p0)
                gradient_a(source, d, gb, rp, r, p0, rows, da, top, bottom, nr // 2, edge)
                gradient_b(xa, rp, r, above, k, p0, rows, db, left, right, nr, edge, last)
            for q in range(r):
                row = db[q * k + left * nr : q * k + min(k, right * nr)]
                for j in range(row.size):
                    row[j] *= scalings[i]


# The same three by address, for threads that share the work: their arguments stand in an array of addresses and sizes.


@runtime.jit(paste=True)
def _unpack(argument, like):
    """What `_pack` put together: n, nr, table, scalings and six arrays of numbers."""
    box = array_at(argument, 18, WORDS)
    table = array_at(box[2], box[3] * 16, WORDS).reshape(box[3], 16)
    scalings = array_at(box[4], box[3], like)
    six = (
        array_at(box[6], box[7], like),
        array_at(box[8], box[9], like),
        array_at(box[10], box[11], like),
        array_at(box[12], box[13], like),
        array_at(box[14], box[15], like),
        array_at(box[16], box[17], like),
    )
    return box[0], box[1], table, scalings, six


@runtime.jit(paste=True)
def _forward_part(start, stop, argument, like):
    n, nr, table, scalings, (x, kept, y, _, _, _) = _unpack(argument, like)
    for unit in range(start, stop, NEAR):
        _forward(unit, min(unit + NEAR, stop), TALL, x, table, scalings, kept, y, n, nr)


@runtime.jit(paste=True)
def _backward_part(start, stop, argument, like):
    n, nr, table, scalings, (g, y, kept, held, dx, _) = _unpack(argument, like)
    for unit in range(start, stop, NEAR):
        _backward(unit, min(unit + NEAR, stop), TALL, g, y, table, scalings, kept, held, dx, n, nr)


@runtime.jit(paste=True)
def _gradients_part(start, stop, argument, like):
    n, nr, table, scalings, (x, g, kept, held, out, _) = _unpack(argument, like)
    _gradients(start, stop, x, g, table, scalings, kept, held, out, n, nr)


@runtime.by_address
def _forward_single(start, stop, argument):
    _forward_part(start, stop, argument, SINGLE)


@runtime.by_address
def _forward_double(start, stop, argument):
    _forward_part(start, stop, argument, DOUBLE)


@runtime.by_address
def _backward_single(start, stop, argument):
    _backward_part(start, stop, argument, SINGLE)


@runtime.by_address
def _backward_double(start, stop, argument):
    _backward_part(start, stop, argument, DOUBLE)


@runtime.by_address
def _gradients_single(start, stop, argument):
    _gradients_part(start, stop, argument, SINGLE)


@runtime.by_address
def _gradients_double(start, stop, argument):
    _gradients_part(start, stop, argument, DOUBLE)


@runtime.jit(inline=True)
def _box(n, nr, table, scalings, a, b, c, d, e, f):
    box = np.empty(18, np.int64)
    box[0], box[1], box[2], box[3], box[4], box[5] = n, nr, table.ctypes.data, len(table), scalings.ctypes.data, 0
    box[6], box[7], box[8], box[9], box[10], box[11] = a.ctypes.data, a.size, b.ctypes.data, b.size, c.ctypes.data, c.size
    box[12], box[13], box[14], box[15], box[16], box[17] = d.ctypes.data, d.size, e.ctypes.data, e.size, f.ctypes.data, f.size
    return box


@runtime.jit
def _share_forward(mails, most, function, grain, patience, n, nr, table, scalings, x, kept, y):
    """All rows forward, on the threads that are there; returns how many."""
    none = y[:0]
    box = _box(n, nr, table, scalings, x, kept, y, none, none, none)
    return share(mails, most, function, (n + TALL - 1) // TALL, grain, patience, box.ctypes.data)


@runtime.jit
def _share_backward(mails, most, rows, shares, grain, patience, n, nr, table, scalings, x, g, y, kept, held, dx, out):
    """All rows backward, then the gradients of A and B; returns on how many threads the rows were done."""
    box = _box(n, nr, table, scalings, g, y, kept, held, dx, dx[:0])
    threads = share(mails, most, rows, (n + TALL - 1) // TALL, grain, patience, box.ctypes.data)
    box = _box(n, nr, table, scalings, x, g, kept, held, out, out[:0])
    share(mails, most, shares, SHARES, 1 if grain * 2 * TALL <= n else SHARES, 0, box.ctypes.data)
    return threads


class _Plan:
    """The table of a chain and what it was made from."""

    def __init__(self, links, scalings, relus):
        dtype = links[0].dtype
        self.nr, self._refs = columns(dtype), [_none if link is None else weakref.ref(link) for link in links]
        self.table = table = np.zeros((len(relus), 16), np.int64)
        self.scalings = np.zeros(len(relus), dtype)
        self.shapes, self.copies = [], []  # of gradients; copies whose addresses stand in the table
        kept = held = grads = work = 0
        for i, (w, bias, a, b, scaling, relu, width) in enumerate(layers_of(links, scalings, relus)):
            (d, k), row, last = w.shape, table[i], i + 1 == len(relus)
            r = 0 if a is None else a.shape[1]
            row[D], row[K], row[R], row[RELU], row[WIDTH] = d, k, r, relu, width
            row[FORWARD], row[BIAS] = address(w.forward()), self._hold(bias)
            if r:
                row[A], row[B], self.scalings[i] = self._hold(a), self._hold(b), scaling
                row[DA], row[DB] = grads, grads + d * r
                self.shapes += [(grads, grads + d * r, (d, r)), (grads + d * r, grads + (d + k) * r, (r, k))]
                grads += (d + k) * r
            row[Y], kept = kept, kept + (0 if last else k)
            row[G], held = held, held + (0 if last and not relu else k)
            row[GB], held = held, held + width
            work += d * k + r * (d + k)
        for row in table:
            row[XA], kept = kept, kept + row[WIDTH]
        self.k, self.kept, self.scratch, self.grads, self.work = int(table[-1, K]), int(kept), int(held), grads, work
        self.d, self.turned, self.none = int(table[0, D]), 0, np.zeros(0, dtype)

    def _hold(self, array):
        """The address of an array, or of a copy, which is kept; 0 for None."""
        if array is None:
            return 0
        if not array.flags.c_contiguous:
            array = np.ascontiguousarray(array)
            self.copies.append(array)
        return address(array)

    def holds(self, links, biased):
        """Whether it was made of these, which still are what they were."""
        mine, links = [ref() for ref in self._refs], [_none if link is None else link for link in links]
        if all(map(is_, mine, links)):
            return True
        return not biased and all(all(map(is_, mine[i::4], links[i::4])) for i in (0, 2, 3))

    def turn(self, links, need_x):
        """Have the weights packed for the backward pass that needs them."""
        for i in range(0 if need_x else 1, len(self.table)):
            self.table[i, BACKWARD] = address(links[4 * i].backward())
        self.turned = 1 + need_x


def _none():
    """What stands for a reference to None: not None, which a reference to an array says that is gone."""
    return _none


def _plan(links, scalings, relus, *, biased=True):
    """The plan of these links, kept with the first weight while all is the same; the biases count only if `biased`.

    Some are kept, so that calls may take turns with adapters; they hold no array, so one that is let go is gone.
    """
    plans, key = links[0].plans, (scalings, relus, *map(id, links[::4]), *map(id, links[2::4]), *map(id, links[3::4]))
    plan = plans.get(key)
    if plan is None or not plan.holds(links, biased):
        plan = _Plan(links, scalings, relus)
        if not plan.copies:  # whose values may change
            links[0].plans = dict(list(plans.items())[1 - PLANS :]) | {key: plan}  # a new one: other threads may be reading
    return plan


def _team(work, n):
    """Mailboxes, how many workers there may be, the least units of rows for a thread, and how long to wait for one that sleeps."""
    mails, most = runtime.mailboxes()
    work = max(1, n * work)
    return mails, most, max(1, ALONE * -(-n // TALL) // work), int(work / PATIENT)


def lora_chain(x, *links, scalings, relus):
    """x through linear layers with adapters and ReLU: (n, d) -> (n, k), and what `lora_chain_grad` needs, in one array.

    See the reference for what `links` and the array are.
    """
    plan = _plan(links, scalings, relus)
    check_input(x, links)
    n, flat, double = x.shape[0], np.ascontiguousarray(x).reshape(-1), x.dtype == np.float64
    kept, y = empty((n * plan.kept,), x.dtype), empty((n, plan.k), x.dtype)
    arrays = n, plan.nr, plan.table, plan.scalings, flat, kept, y.reshape(-1)
    if config.DISABLE_JIT:
        n, nr, table, scalings, flat, kept, out = arrays
        _forward(0, -(-n // TALL), TALL, flat, table, scalings, kept, out, n, nr)
    else:
        mails, most, grain, patience = _team(plan.work, n)
        _share_forward(mails, most, (_forward_double if double else _forward_single)(), grain, patience, *arrays)
    return y, kept


def lora_chain_grad(g, x, y, kept, *links, scalings, relus, need_x=True):
    """Gradients of `lora_chain` for x (None if not `need_x`), then A and B of each layer that has them."""
    plan, n = _plan(links, scalings, relus, biased=False), x.shape[0]
    if plan.turned < 1 + need_x:
        plan.turn(links, need_x)
    g, x, y = (np.ascontiguousarray(each).reshape(-1) for each in (g, x, y))
    held, out = empty((n * plan.scratch,), g.dtype), empty((plan.grads,), g.dtype)
    dx = empty((n if need_x else 0, plan.d), g.dtype)
    if not n:
        out[:] = 0
    elif config.DISABLE_JIT:
        _backward(0, -(-n // TALL), TALL, g, y, plan.table, plan.scalings, kept, held, dx.reshape(-1), n, plan.nr)
        _gradients(0, SHARES, x, g, plan.table, plan.scalings, kept, held, out, n, plan.nr)
    else:
        functions = (_backward_double, _gradients_double) if g.dtype == np.float64 else (_backward_single, _gradients_single)
        mails, most, grain, patience = _team(plan.work, n)
        arrays = n, plan.nr, plan.table, plan.scalings, x, g, y, kept, held, dx.reshape(-1), out
        _share_backward(mails, most, functions[0](), functions[1](), grain, patience, *arrays)
    return dx if need_x else None, *[out[start:stop].reshape(shape) for start, stop, shape in plan.shapes]
