"""Adapters for the tests of the exchange."""

import numpy as np

from loratk.exchange import AdapterState


def module(seed=0, *, d=6, k=4, rank=2, alpha=4.0, rslora=False, dtype=np.float64, groups=1, **record):
    """The record and the parameters of one LoRA module."""
    rng = np.random.default_rng(seed)
    held = {"lora_A": rng.standard_normal((d, rank)).astype(dtype), "lora_B": rng.standard_normal((rank // groups, k)).astype(dtype)}
    scaling = alpha / (rank**0.5 if rslora else rank)
    facts = {"method": "lora", "layer_type": "linear", "shape": [d, k], "rank": rank, "alpha": alpha, "scaling": scaling}
    return facts | ({"groups": groups} if groups > 1 else {}) | record, held


def state(modules, name="mine", config=None, **fields):
    """A state of modules, each a record and its parameters."""
    tensors = {f"{path}.{key}": array for path, (_, held) in modules.items() for key, array in held.items()}
    return AdapterState(name, config or {}, tensors, {path: dict(record) for path, (record, _) in modules.items()}, **fields)


def dense(record, held):
    """scaling A B, group by group."""
    groups = record.get("groups", 1)
    a, b = (np.split(held[key].astype(np.float64), groups, axis=1) for key in ("lora_A", "lora_B"))
    return record["scaling"] * np.hstack([left @ right for left, right in zip(a, b, strict=True)])
