"""Adapters for the tests of the algebra."""

import numpy as np

from loratk.exchange import AdapterState
from loratk.exchange.factors import dense_update


def module(seed=0, *, d=6, k=4, rank=2, alpha=4.0, rslora=False, dtype=np.float64, groups=1, experts=0, **record):
    """The record and the parameters of one LoRA module; d is that of a group."""
    rng, stack = np.random.default_rng(seed), (experts,) if experts else ()
    held = {"lora_A": rng.standard_normal((*stack, d, rank)), "lora_B": rng.standard_normal((*stack, rank // groups, k))}
    scaling = alpha / (rank**0.5 if rslora else rank)
    facts = {"method": "lora", "layer_type": "linear", "shape": [d, k], "rank": rank, "alpha": alpha, "scaling": scaling}
    facts |= {"groups": groups} if groups > 1 else {}
    facts |= {"experts": experts} if experts else {}
    return facts | record, {key: array.astype(dtype) for key, array in held.items()}


def beside(pair, **arrays):
    """A module with more parameters."""
    return pair[0], pair[1] | {key: np.asarray(array, np.float64) for key, array in arrays.items()}


def state(modules, name="mine", config=None, **fields):
    """A state of modules, each a record and its parameters."""
    tensors = {f"{path}.{key}": array for path, (_, held) in modules.items() for key, array in held.items()}
    return AdapterState(name, config or {}, tensors, {path: dict(record) for path, (record, _) in modules.items()}, **fields)


def update(adapter, path):
    """The dense update of a module, (d, k) or (experts, d, k)."""
    return dense_update(adapter.modules[path], adapter.parameters()[path])


def known(values, d=40, k=30, seed=3):
    """A pair with these singular values, its factors mixed by a random matrix."""
    rng = np.random.default_rng(seed)
    n = len(values)
    u, v = (np.linalg.qr(rng.standard_normal((m, n)))[0] for m in (d, k))
    mix = rng.standard_normal((n, n)) + 3 * np.eye(n)
    return u * np.asarray(values) @ mix, np.linalg.solve(mix, v.T)


class Base:
    """A base in memory, input first."""

    path, order = "memory", "input-first"

    def __init__(self, **weights):
        self.weights = weights

    def modules(self):
        return list(self.weights)

    def shape(self, module):
        return self.weights[module].shape

    def weight(self, module):
        return self.weights[module]

    def bias(self, module):
        return None
