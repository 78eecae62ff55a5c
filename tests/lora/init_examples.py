"""What an init gives the factors of a small weight."""

import numpy as np

from loratk import ops
from loratk.lora import Start
from loratk.plugins import default_registry

INITS = default_registry().inits
SCALING = 0.5


def weight(d=9, k=7, seed=0):
    return np.random.default_rng(seed).standard_normal((d, k))


def rows(n=64, d=6, seed=3):
    return np.random.default_rng(seed).standard_normal((n, d))


def mse(y, target):
    return ops.mean((y - target) ** 2)


def start(name, w=None, rank=2, evidence=None, **options):
    init, w = INITS[name], weight() if w is None else w
    made = init.start(Start(w, rank, SCALING, np.random.default_rng(1), {**init.options, **options}, evidence))
    return made.lora_A, made.lora_B
