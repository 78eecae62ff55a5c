"""Adapters of the models of mlx_loader.py, and a base for them."""

import numpy as np
from mlx_loader import LAYERS

from loratk.exchange import AdapterState
from loratk.exchange.bake import dora_update
from loratk.exchange.factors import dense_update

SIZES = {"self_attn.q_proj": (8, 12), "mlp.up_proj": (8, 6), "mixer.in_proj": (8, 5), "model.embed_tokens": (10, 8), "lm_head": (8, 10),
         "mlp.switch_mlp.up_proj": (8, 6)}  # fmt: skip


def module(path, rank=2, alpha=3.0, dtype=np.float32, seed=0, *, dora=False, **more):
    inner = path.removeprefix(f"{LAYERS}.").partition(".")[2] if path.startswith(LAYERS) else path
    d, k = SIZES[inner]
    rng = np.random.default_rng(sum(map(ord, path)) + seed)
    record = {"method": "dora" if dora else "lora", "layer_type": "linear", "shape": [d, k], "rank": rank, "alpha": alpha,
              "scaling": alpha / rank} | more  # fmt: skip
    record |= {"layer_type": "embedding"} if "embed" in path else {}
    record |= {"experts": 3} if "switch" in path else {}
    stack = [3] if "switch" in path else []
    held = {"lora_A": rng.standard_normal((*stack, d, rank)), "lora_B": rng.standard_normal((*stack, rank, k))}
    held |= {"magnitude": rng.random(k)} if dora else {}
    return record, {key: array.astype(dtype) for key, array in held.items()}


def adapter(paths, *, rest=None, **changes):
    modules = {path: module(path, **changes) for path in paths} | (rest or {})
    tensors = {f"{path}.{key}": array for path, (_, held) in modules.items() for key, array in held.items()}
    return AdapterState("default", {}, tensors, {path: record for path, (record, _) in modules.items()})


def blocks(*numbers, inner=("self_attn.q_proj", "mlp.up_proj")):
    return [f"{LAYERS}.{number}.{path}" for number in numbers for path in inner]


def assert_same(got, want):
    assert got.tensors.keys() == want.tensors.keys()
    for key, array in want.tensors.items():
        assert got.tensors[key].dtype == array.dtype, key
        assert got.tensors[key].tobytes() == array.tobytes(), key
    for path, record in want.modules.items():
        assert {key: value for key, value in got.modules[path].items() if key != "alpha_source"} == record


def assert_close(got, want):
    assert np.linalg.norm(got - want) <= 1e-6 * np.linalg.norm(want)


def dense(state, path, model=None):
    record, held = state.modules[path], state.parameters()[path]
    return dora_update(model.layers[path][1].T, record, held) if "magnitude" in held else dense_update(record, held)


class Base:
    """The base's weights, as far as a format asks for them."""

    path = "base"

    def __init__(self, model):
        self.model = model

    def modules(self):
        return list(self.model.layers)

    def shape(self, path):
        return self.model.layers[path][1].shape
