"""Adapters to write as GGUF, and what llama.cpp makes of a file."""

import math

import numpy as np

from loratk.exchange import AdapterState, load_adapter, save_adapter
from loratk.exchange.factors import dense_update

BLOCK = "model.layers.{}."


def linear(d, k, r, alpha, seed=0, dtype=np.float32, rslora=False, **more):
    rng = np.random.default_rng(seed)
    scaling = alpha / math.sqrt(r) if rslora else alpha / r
    record = {"method": "lora", "layer_type": "linear", "shape": [d, k], "rank": r, "alpha": float(alpha), "scaling": scaling} | more
    stack = (record["experts"],) if "experts" in record else ()
    return record, rng.standard_normal((*stack, d, r)).astype(dtype), rng.standard_normal((*stack, r, k)).astype(dtype)


def adapter(modules, **fields):
    tensors = {f"{name}.{key}": array for name, (_, a, b) in modules.items() for key, array in (("lora_A", a), ("lora_B", b))}
    return AdapterState("default", {}, tensors, {name: record for name, (record, _, _) in modules.items()}, **fields)


def llama(**changes):
    block = {
        BLOCK.format(0) + "self_attn.q_proj": linear(12, 16, 3, 6, 1),
        BLOCK.format(0) + "self_attn.k_proj": linear(12, 8, 3, 6, 2),
        BLOCK.format(10) + "self_attn.v_proj": linear(12, 8, 3, 6, 3),
        BLOCK.format(10) + "self_attn.o_proj": linear(16, 12, 3, 6, 4),
        BLOCK.format(2) + "mlp.gate_proj": linear(12, 20, 3, 6, 5),
        BLOCK.format(2) + "mlp.up_proj": linear(12, 20, 3, 6, 6),
        BLOCK.format(2) + "mlp.down_proj": linear(20, 12, 3, 6, 7),
        "model.embed_tokens": linear(30, 12, 3, 6, 8, layer_type="embedding"),
        "lm_head": linear(12, 30, 3, 6, 9),
    }
    return adapter(block | changes)


OPTIONS = {"architecture": "llama", "n_head": 4, "n_head_kv": 2}


def applied(path, options=OPTIONS):
    """What llama.cpp adds to each weight of the base, in the rows of its own file: alpha / rank, or 1 where alpha is 0, times B A."""
    state = load_adapter(path, options={"names": "gguf"}).states[0]
    return {module: dense_update(state.modules[module], held) for module, held in state.parameters().items()}


def assert_same(got, want):
    assert got.modules.keys() == want.modules.keys()
    assert got.tensors.keys() == want.tensors.keys()
    for key, array in want.tensors.items():
        assert got.tensors[key].dtype == array.dtype, key
        assert got.tensors[key].tobytes() == array.tobytes(), key
    for module, record in want.modules.items():
        mine = {key: value for key, value in got.modules[module].items() if key != "alpha_source"}
        assert mine == {key: value for key, value in record.items() if key != "alpha_source"}


def assert_close(got, want):
    """Equal updates but for rounding: the norm of what differs against the norm of the whole."""
    assert np.linalg.norm(got - want) <= 1e-6 * np.linalg.norm(want)


def dense_of(state, module):
    return dense_update(state.modules[module], state.parameters()[module])


def applied_after(tmp_path, options, state=None):
    save_adapter(tmp_path / "applied.gguf", state or llama(), options=options)
    return applied(tmp_path / "applied.gguf")


UP = BLOCK.format(0) + "mlp.up_proj"


def one(name=UP, *, magnitude=False, **record):
    d = 4 if record.get("layer_type") != "conv2d" else 36
    made = linear(d, 6, 2, 4, **record)
    state = adapter({name: made})
    if magnitude:
        state.tensors[f"{name}.magnitude"] = np.ones(6, np.float32)
    return state
