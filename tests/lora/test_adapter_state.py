"""An adapter as a dict of arrays: copies out, all or nothing in."""

import numpy as np
import pytest

from loratk import LoraConfig, LoraModel
from loratk.errors import FormatError, UnknownNameError
from loratk.nn import TransformerEncoderLayer
from loratk.testing.layer_type import randomize


def make(seed=0, **config):
    model = LoraModel.adapt(TransformerEncoderLayer(4, 2, 6, rng=0).eval(), LoraConfig(2, **config)).eval()
    for i, layer in enumerate(model.layers.values()):
        randomize(layer.adapters, seed + i)
    return model


def test_names_and_shapes():
    got = {name: array.shape for name, array in make(method="dora", bias="lora_only", targets=["qkv.q", "up"]).state().items()}
    assert got == {
        "attention.qkv.q.lora_A": (4, 2), "attention.qkv.q.lora_B": (2, 4), "attention.qkv.q.magnitude": (4,), "attention.qkv.bias": (12,),
        "feed_forward.up.lora_A": (4, 2), "feed_forward.up.lora_B": (2, 6), "feed_forward.up.magnitude": (6,), "feed_forward.up.bias": (6,),
    }  # fmt: skip


@pytest.mark.parametrize("config", [{}, {"method": "dora", "bias": "all"}], ids=str)
def test_a_state_carries_the_adapter_to_the_last_bit(config):
    x = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)
    one, other = make(0, **config), make(50, **config)
    want = one(x).numpy()
    assert not np.allclose(other(x).numpy(), want)
    other.load_state(one.state())
    assert np.array_equal(other(x).numpy(), want)
    assert all(np.array_equal(array, one.state()[name]) for name, array in other.state().items())


def test_states_are_copies():
    model = make()
    state = model.state()
    want = {name: array.copy() for name, array in state.items()}
    for array in state.values():
        array[...] = 0
    assert all(np.array_equal(array, want[name]) for name, array in model.state().items())
    model.load_state(want)
    for array in want.values():
        array[...] = 0
    assert any(array.any() for array in model.state().values())


def test_every_fault_is_listed_and_nothing_is_loaded():
    model = make(targets=["qkv.q", "up", "down"])
    before = model.state()
    state = {name: array + 1 for name, array in before.items()}
    del state["attention.qkv.q.lora_A"]
    state["attention.qkv.k.lora_A"] = np.zeros((4, 2), np.float32)
    state["feed_forward.up.lora_A"] = np.zeros((2, 4), np.float32)
    state["feed_forward.up.lora_B"] = np.zeros((2, 6))
    state["feed_forward.down.lora_B"] = np.full((2, 4), np.nan, np.float32)
    with pytest.raises(FormatError) as caught:
        model.load_state(state)
    got = str(caught.value)
    for said in (
        "does not fit the adapter 'default' (nothing was loaded)",
        "missing: 'attention.qkv.q.lora_A' (4, 2)",
        "unexpected: 'attention.qkv.k.lora_A' (4, 2)",
        "wrong shape: 'feed_forward.up.lora_A' must be (4, 2), found (2, 4)",
        "wrong dtype: 'feed_forward.up.lora_B' must be float32, found float64; convert it with astype",
        "not finite: 'feed_forward.down.lora_B' holds NaN or infinity",
    ):
        assert said in got
    assert all(np.array_equal(array, before[name]) for name, array in model.state().items())


def test_each_adapter_has_its_own_state():
    model = make()
    model.add_adapter("other", LoraConfig(1, targets=["up"]))
    assert set(model.state("other")) == {"feed_forward.up.lora_A", "feed_forward.up.lora_B"}
    with pytest.raises(UnknownNameError, match=r"no adapter 'third'\. Adapters: 'default', 'other'"):
        model.load_state({}, "third")


def test_the_state_of_the_base_has_its_own_names():
    base = TransformerEncoderLayer(4, 2, 6, rng=0)
    want = base.state_dict()
    got = LoraModel.adapt(base, LoraConfig(2)).base_state()
    assert list(got) == list(want)
    assert all(np.array_equal(got[name], want[name]) for name in want)
