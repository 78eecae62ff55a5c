"""Optimiser updates. The only kernels that write into their arguments: parameter and state change in place."""

import math

from numba import cuda

from ...errors import BackendError
from . import device
from .arrays import asarray, empty, flat, is_device_array
from .device import launch

__all__ = ["adam_step", "sgd_step"]

sqrt = device.sqrt


def _in_place(**arrays):
    for name, x in arrays.items():
        if not is_device_array(x):
            raise BackendError(f"{name!r} is changed in place, so it must be on the device, found {type(x).__name__}: use `asarray` first.")
    return [flat(asarray(x)) for x in arrays.values()]


@cuda.jit
def _sgd(p, g, velocity, lr, momentum, nesterov, weight_decay):
    i = cuda.grid(1)
    if i < p.size:
        step = g[i] + weight_decay * p[i]
        if velocity.size:
            v = momentum * velocity[i] + step
            velocity[i] = v
            step = step + momentum * v if nesterov else v
        p[i] -= lr * step


def sgd_step(p, g, velocity=None, *, lr, momentum=0.0, nesterov=False, weight_decay=0.0):
    """One step of gradient descent on p, in place: d = g + weight_decay p; v = momentum v + d; p -= lr (d + momentum v, v or d).

    `velocity` (p's shape, zeros at first) is needed when momentum is not 0. Sutskever et al. 2013, section 2, as PyTorch writes it.
    """
    real = p.dtype.type
    (flat_p,) = _in_place(p=p)
    (v,) = _in_place(velocity=velocity) if momentum else (empty(0, p.dtype),)
    launch(_sgd, p.size, flat_p, flat(asarray(g)), v, real(lr), real(momentum), nesterov, real(weight_decay))


@cuda.jit
def _adam(p, g, m, v, keep, decay, rest1, rest2, size, root, eps):
    i = cuda.grid(1)
    if i < p.size:
        slope = g[i] + decay * p[i]
        m[i] += rest1 * (slope - m[i])
        v[i] += rest2 * (slope * slope - v[i])
        p[i] = keep * p[i] - size * m[i] / (sqrt(v[i]) / root + eps)


def adam_step(p, g, m, v, *, lr, beta1, beta2, eps, weight_decay, decoupled, step):
    """One step of Adam on p, with its moments m and v, all in place; `step` counts from 1.

    Kingma & Ba 2015, algorithm 1. Weight decay is added to g, or, `decoupled`, shrinks p by lr * weight_decay first
    (AdamW: Loshchilov & Hutter 2019, algorithm 2).
    """
    real = p.dtype.type
    keep, decay = (1 - lr * weight_decay, 0.0) if decoupled else (1.0, weight_decay)
    size, root = lr / (1 - beta1**step), math.sqrt(1 - beta2**step)
    constants = (real(value) for value in (keep, decay, 1 - beta1, 1 - beta2, size, root, eps))
    flat_p, flat_m, flat_v = _in_place(p=p, m=m, v=v)
    launch(_adam, p.size, flat_p, flat(asarray(g)), flat_m, flat_v, *constants)
