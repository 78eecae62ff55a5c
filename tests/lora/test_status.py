"""What a model tells of itself as data."""

import json

import numpy as np
import pytest

from loratk import LoraConfig, LoraModel
from loratk.nn import MLP, Embedding, QKVProjection, Sequential


def make():
    model = LoraModel(MLP([5, 7, 4], rng=0))
    model.add_adapter("a", LoraConfig(rank=2, alpha=4.0, rank_pattern={"2": 3}))
    model.add_adapter("b", LoraConfig(rank=1, targets="0", method="dora", bias="lora_only"))
    model.set_active({"a": 0.5})
    return model


def test_a_sound_model():
    status = make().status()
    a, b = status.adapters["a"], status.adapters["b"]
    assert (a.methods, a.ranks, a.layers, a.parameters) == (("lora",), (2, 3), 2, 2 * (5 + 7) + 3 * (7 + 4))
    assert (a.active, a.merged, a.trainable, a.dtypes, a.backends) == (0.5, None, True, ("float32",), ("cpu",))
    assert (b.methods, b.layers, b.active) == (("bias", "dora"), 1, None)
    assert (status.base, status.enabled, status.active, status.merged, status.irregular) == ("MLP", True, {"a": 0.5}, {}, ())
    layer = status.layers["0"]
    assert (layer.layer_type, layer.shape, layer.dtype, layer.backend) == ("linear", (5, 7), "float32", "cpu")
    assert (layer.adapters, layer.active, layer.merged, layer.enabled) == (("a", "b"), {"a": 0.5}, {}, True)
    part = layer.parts[0]
    assert (part.adapter, part.method, part.rank, part.alpha, part.scaling, part.parameters) == ("a", "lora", 2, 4.0, 2.0, 24)
    assert status.base_parameters == 5 * 7 + 7 + 7 * 4 + 4


def test_it_is_plain_data():
    told = json.loads(json.dumps(make().status().to_dict()))
    assert told["adapters"]["a"]["ranks"] == [2, 3]


def test_merged_switched_off_and_frozen():
    model = make()
    model.merge()
    assert (model.status().merged, model.status().layers["2"].merged) == ({"a": 0.5}, {"a": 0.5})
    model.unmerge()
    model.disable()
    assert model.status().enabled is False
    model.freeze()
    assert model.status().adapters["a"].trainable is False


def test_blocks_and_layers_of_other_types():
    model = LoraModel(Sequential(Embedding(9, 8, rng=0), QKVProjection(8, heads=2, rng=0)))
    model.add_adapter("a", LoraConfig(rank=2, targets=["0", "1.q", "1.v"]))
    status = model.status()
    assert [(part.block, part.method) for part in status.layers["1"].parts] == [("q", "lora"), ("v", "lora")]
    assert status.layers["0"].layer_type == "embedding"


@pytest.mark.parametrize(
    ("change", "what", "line"),
    [
        (
            lambda model: model.layers["2"].activate({"a": 2.0}),
            "active",
            r"adapter 'a' is active with different weights ('0': 0.5, '2': 2.0)",
        ),
        (lambda model: model.layers["2"].activate({}), "active", "adapter 'a' is active with different weights ('0': 0.5, '2': not)"),
        (lambda model: model.layers["2"].merge("a"), "merged", "adapter 'a' is merged with different weights ('0': not, '2': 1.0)"),
        (lambda model: model.layers["2"].adapter("a").freeze(), "trainable", "adapter 'a' trains in part: it is frozen in '2'"),
    ],
)
def test_what_differs_from_layer_to_layer_is_told_by_name(change, what, line):
    model = make()
    change(model)
    status = model.status()
    assert getattr(status.adapters["a"], what) == "irregular"
    assert status.irregular == (line,)


def test_layers_switched_off_by_themselves_and_strangers():
    model = make()
    model.layers["2"].enabled = False
    model.layers["0"].add("c", LoraConfig(rank=1))
    status = model.status()
    assert status.enabled == "irregular"
    assert status.irregular == (
        "the adapters are switched on, but not those of '2'",
        "layer '0' has an adapter 'c' that the model does not know",
    )


def test_parts_of_another_dtype():
    model = make()
    part = model.layers["2"].adapter("a").block("")
    part.lora_A.data = part.lora_A.numpy().astype(np.float64)
    assert model.status().irregular == ("adapter 'a' has parts of different dtypes: float32, float64",)
