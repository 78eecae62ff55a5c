"""Optimiser updates: one pass over parameter, gradient and state, in place."""

import math

import numpy as np
from numba import config

from .. import reference
from ..runtime import by_address, jit, mailboxes, parallel_for
from ..spin import share
from .address import DOUBLE, SINGLE, WORDS, array_at
from .split import GRAIN

__all__ = ["adam_step", "sgd_step"]


@jit
def _sgd_step(start, stop, p, g, lr, weight_decay):
    p, g = p[start:stop], g[start:stop]
    for i in range(p.size):
        p[i] -= lr * (g[i] + weight_decay * p[i] if weight_decay != 0 else g[i])


@jit
def _sgd_momentum_step(start, stop, p, g, velocity, lr, momentum, nesterov, weight_decay):
    p, g, velocity = p[start:stop], g[start:stop], velocity[start:stop]
    for i in range(p.size):
        step = g[i] + weight_decay * p[i] if weight_decay != 0 else g[i]
        velocity[i] = momentum * velocity[i] + step
        p[i] -= lr * (step + momentum * velocity[i] if nesterov else velocity[i])


def sgd_step(p, g, velocity=None, *, lr, momentum=0.0, nesterov=False, weight_decay=0.0):
    """One step of gradient descent on p, in place: d = g + weight_decay p; v = momentum v + d; p -= lr (d + momentum v, v or d).

    `velocity` (p's shape, zeros at first) is needed when momentum is not 0. Sutskever et al. 2013, section 2, as PyTorch writes it.
    """
    t = p.dtype.type
    if momentum:
        if not (p.flags.c_contiguous and velocity.flags.c_contiguous):
            reference.optim.sgd_step(p, g, velocity, lr=lr, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay)
            return
        arrays = _lines(p, np.ascontiguousarray(g), velocity)
        parallel_for(_sgd_momentum_step, p.size, *arrays, t(lr), t(momentum), bool(nesterov), t(weight_decay), grain=GRAIN)
    elif p.flags.c_contiguous:
        parallel_for(_sgd_step, p.size, *_lines(p, np.ascontiguousarray(g)), t(lr), t(weight_decay), grain=GRAIN)
    else:
        reference.optim.sgd_step(p, g, lr=lr, weight_decay=weight_decay)


def _lines(*arrays):
    return [array.reshape(-1) for array in arrays]


@jit
def _adam_step(start, stop, p, g, m, v, shrink, weight_decay, rate1, rate2, size, scale, eps):
    p, g, m, v = p[start:stop], g[start:stop], m[start:stop], v[start:stop]
    t = p.dtype.type
    shrink, weight_decay, rate1, rate2 = t(shrink), t(weight_decay), t(rate1), t(rate2)
    size, scale, eps = t(size), t(scale), t(eps)
    for i in range(p.size):
        d = g[i] + weight_decay * p[i] if weight_decay != 0 else g[i]
        m[i] += rate1 * (d - m[i])
        v[i] += rate2 * (d * d - v[i])
        p[i] = shrink * p[i] - size * m[i] / (np.sqrt(v[i]) / scale + eps)


# The same by address, for threads that are handed their part without Python.


@jit(paste=True)
def _adam_part(start, stop, argument, like):
    box = array_at(argument, 6, WORDS)
    size, c = box[4], array_at(box[5], 7, DOUBLE)
    p, g, m, v = array_at(box[0], size, like), array_at(box[1], size, like), array_at(box[2], size, like), array_at(box[3], size, like)
    _adam_step(start, stop, p, g, m, v, c[0], c[1], c[2], c[3], c[4], c[5], c[6])


@by_address
def _adam_single(start, stop, argument):
    _adam_part(start, stop, argument, SINGLE)


@by_address
def _adam_double(start, stop, argument):
    _adam_part(start, stop, argument, DOUBLE)


@jit
def _share_adam(mails, most, function, patience, p, g, m, v, constants):
    box = np.empty(6, np.int64)
    box[0], box[1], box[2], box[3] = p.ctypes.data, g.ctypes.data, m.ctypes.data, v.ctypes.data
    box[4], box[5] = p.size, constants.ctypes.data
    return share(mails, most, function, p.size, GRAIN, patience, box.ctypes.data)


PATIENT = 128  # entries for one look for a sleeping worker: half the time they take alone


def adam_step(p, g, m, v, *, lr, beta1, beta2, eps, weight_decay, decoupled, step):
    """One step of Adam on p, with its moments m and v, all in place; `step` counts from 1.

    Kingma & Ba 2015, algorithm 1. Weight decay is added to g, or, `decoupled`, shrinks p by lr * weight_decay first
    (AdamW: Loshchilov & Hutter 2019, algorithm 2).
    """
    if not (p.flags.c_contiguous and m.flags.c_contiguous and v.flags.c_contiguous):
        options = {"lr": lr, "beta1": beta1, "beta2": beta2, "eps": eps}
        reference.optim.adam_step(p, g, m, v, **options, weight_decay=weight_decay, decoupled=decoupled, step=step)
        return
    shrink, added = (1.0 - lr * weight_decay, 0.0) if decoupled else (1.0, float(weight_decay))
    arrays = p.reshape(-1), g.reshape(-1), m.reshape(-1), v.reshape(-1)
    rates = 1.0 - beta1, 1.0 - beta2, lr / (1 - beta1**step), math.sqrt(1 - beta2**step)
    constants = shrink, added, *rates, eps
    if p.size < 2 * GRAIN or config.DISABLE_JIT:
        parallel_for(_adam_step, p.size, *arrays, *constants, grain=GRAIN)
    else:
        function = _adam_double() if p.dtype == np.float64 else _adam_single()
        _share_adam(*mailboxes(), function, int(p.size / PATIENT), *arrays, np.array(constants))
