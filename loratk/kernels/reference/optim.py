"""Optimiser updates. The only kernels that write into their arguments: parameter and state change in place."""

import math

import numpy as np

__all__ = ["adam_step", "sgd_step"]


def sgd_step(p, g, velocity=None, *, lr, momentum=0.0, nesterov=False, weight_decay=0.0):
    """One step of gradient descent on p, in place: d = g + weight_decay p; v = momentum v + d; p -= lr (d + momentum v, v or d).

    `velocity` (p's shape, zeros at first) is needed when momentum is not 0. Sutskever et al. 2013, section 2, as PyTorch writes it.
    """
    step = g + p.dtype.type(weight_decay) * p if weight_decay else g
    if momentum:
        velocity *= p.dtype.type(momentum)
        velocity += step
        step = step + p.dtype.type(momentum) * velocity if nesterov else velocity
    p -= p.dtype.type(lr) * step


def adam_step(p, g, m, v, *, lr, beta1, beta2, eps, weight_decay, decoupled, step):
    """One step of Adam on p, with its moments m and v, all in place; `step` counts from 1.

    Kingma & Ba 2015, algorithm 1. Weight decay is added to g, or, `decoupled`, shrinks p by lr * weight_decay first
    (AdamW: Loshchilov & Hutter 2019, algorithm 2).
    """
    t = p.dtype.type
    if weight_decay and decoupled:
        p *= t(1 - lr * weight_decay)
    elif weight_decay:
        g = g + t(weight_decay) * p
    m += t(1 - beta1) * (g - m)
    v += t(1 - beta2) * (g * g - v)
    size = t(lr / (1 - beta1**step))
    p -= size * m / (np.sqrt(v) / t(math.sqrt(1 - beta2**step)) + t(eps))
