"""Merged equals adapted, unmerged equals the original to the last bit, and no way to count an adapter twice."""

from pathlib import Path

import numpy as np
import pytest
from layer_examples import LAYERS

from loratk import LoraConfig, LoraModel
from loratk.errors import StateError, UnknownNameError
from loratk.kernels import Backend
from loratk.lora import LoraLayer
from loratk.nn import MLP, Linear, Sequential
from loratk.plugins import default_registry
from loratk.testing.layer_type import randomize

TYPES, METHODS = default_registry().layer_types, default_registry().methods


def moved(model):
    for i, layer in enumerate(model.layers.values()):
        randomize(layer.adapters, i)
    return model


def bits(model):
    return {name: p.numpy().tobytes() for name, p in model.base_parameters().items()}


@pytest.fixture
def x():
    return np.random.default_rng(0).standard_normal((3, 6)).astype(np.float32)


@pytest.fixture
def model():
    """Adapters a on both layers, b on the second."""
    model = LoraModel.adapt(MLP([6, 5, 4], rng=0), LoraConfig(2, bias="all"), adapter="a")
    model.add_adapter("b", LoraConfig(2, targets=["2"], method="dora"))
    return moved(model)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", TYPES.values(), ids=lambda kind: kind.name)
def test_merged_is_adapted_and_unmerged_is_the_original(kind, method):
    make_module, make_input = LAYERS[kind.module]
    x = make_input(np.float32)
    model = LoraModel.adapt(make_module(np.float32), LoraConfig(1, 2, targets="*", method=method))
    base = model(x).numpy()
    moved(model)
    adapted, before = model(x).numpy(), bits(model)
    assert not np.allclose(adapted, base, rtol=1e-3)
    model.merge()
    np.testing.assert_allclose(model(x).numpy(), adapted, rtol=1e-4, atol=1e-5)
    model.unmerge()
    assert bits(model) == before
    assert np.array_equal(model(x).numpy(), adapted)


def test_the_merged_weight_is_its_formula():
    model = moved(LoraModel.adapt(Linear(6, 4, rng=0), LoraConfig(2, 3)))
    state = model.state()
    want = model.base_state()["weight"] + 1.5 * state["root.lora_A"] @ state["root.lora_B"]
    np.testing.assert_allclose(model.merged_state()["weight"], want, rtol=1e-6)


def test_merged_state_leaves_the_model_alone(model, x):
    before, output = bits(model), model(x).numpy()
    got = model.merged_state()
    for array in got.values():
        array[...] = 0  # they are copies
    assert bits(model) == before
    assert np.array_equal(model(x).numpy(), output)
    plain = MLP([6, 5, 4], rng=9)
    plain.load_state_dict(model.merged_state())
    np.testing.assert_allclose(plain(x).numpy(), output, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("active", [["a"], ["b"], ["a", "b"], {"a": 0.5, "b": -2}], ids=str)
def test_named_adapters_are_merged_and_no_others_act(model, x, active):
    model.set_active(active)
    want = model(x).numpy()
    state = model.merged_state()
    model.set_active(["a", "b"])
    named = model.merged_state(active)
    assert all(np.array_equal(state[name], named[name]) for name in state)
    model.merge(active)
    np.testing.assert_allclose(model(x).numpy(), want, rtol=1e-4, atol=1e-5)
    assert model.merged == (active if isinstance(active, dict) else dict.fromkeys(active, 1.0))
    model.unmerge()
    assert model.active == {"a": 1.0, "b": 1.0}


def test_merging_twice_is_refused(model, x):
    model.set_active(["a"])
    model.merge()
    once, output = bits(model), model(x).numpy()
    for again in (None, "a", "b"):
        with pytest.raises(StateError, match=r"'a' is merged already; merging again would count it twice\. unmerge\(\) first"):
            model.merge(again)
    for layer in model.layers.values():
        with pytest.raises(StateError, match="merging again would count them twice"):
            layer.merge()
    with pytest.raises(StateError, match="'a' is merged already"):
        model.merged_state()
    with pytest.raises(StateError, match="'a' is merged already"):
        model.merge_and_unload("a")
    assert bits(model) == once
    assert np.array_equal(model(x).numpy(), output)


def test_what_a_merged_model_refuses(model):
    model.merge("b")
    for call in (
        lambda: model.add_adapter("c", LoraConfig(1)),
        lambda: model.remove_adapter("a"),
        lambda: model.set_active("a"),
        lambda: model.load_state(model.state("a"), "a"),
        model.disable,
        model.unfreeze_base,
        model.unload,
    ):
        with pytest.raises(StateError, match=r"'b' is merged.*unmerge\(\) first"):
            call()
    model.unmerge()
    assert list(model.adapters) == ["a", "b"]
    assert set(model.layers["0"].names()) == {"a"}  # nothing was half done
    assert model.active == {"a": 1.0}


def test_what_cannot_be_merged_or_unmerged(model):
    with pytest.raises(StateError, match="Nothing is merged"):
        model.unmerge()
    with pytest.raises(StateError, match="Nothing is merged into 0"):
        model.layers["0"].unmerge()
    with pytest.raises(UnknownNameError, match="no adapter 'c'"):
        model.merge("c")
    model.set_active([])
    with pytest.raises(StateError, match="nothing to merge"):
        model.merge()
    with model.disabled(), pytest.raises(StateError, match=r"switched off; enable\(\) first"):
        model.merge("a")


def test_merging_is_all_or_nothing(model, x):
    part = model.layers["2"].adapter("b").blocks()[""]
    broken = part.lora_B.numpy().copy()
    broken[0, 0] = np.inf
    part.lora_B.assign(broken)
    before = bits(model)
    with np.errstate(all="ignore"), pytest.raises(StateError, match="Merging into 2 gives values that are not finite; nothing was merged"):
        model.merge(["a", "b"])
    assert bits(model) == before
    assert not model.merged
    model.merge("a")  # and nothing stands in the way of a good one


def test_the_fingerprint_is_that_of_the_base(model):
    want = model.fingerprint()
    model.merge()
    assert model.fingerprint() == want
    model.unmerge()
    assert model.fingerprint() == want
    assert LoraModel(MLP([6, 5, 4], rng=0)).fingerprint() == want
    assert LoraModel(MLP([6, 5, 4], rng=1)).fingerprint() != want
    assert LoraModel(Sequential(MLP([6, 5, 4], rng=0))).fingerprint() != want


def test_merge_and_unload_is_for_good(model, x):
    want = model(x).numpy()
    base = model.merge_and_unload()
    np.testing.assert_allclose(base(x).numpy(), want, rtol=1e-4, atol=1e-5)
    assert not any(isinstance(module, LoraLayer) for _, module in base.modules())
    assert not model.adapters


def test_what_is_merged_can_be_kept(model, x):
    model.merge("b")
    want = model(x).numpy()
    assert np.array_equal(model.merge_and_unload()(x).numpy(), want)


class Box:
    """An array of another device: not a NumPy array, but with its shape and dtype."""

    def __init__(self, array):
        self.array, self.shape, self.dtype = np.array(array), array.shape, array.dtype


BOXES = Backend("boxes", {}, Box, lambda box: box.array)


def test_unmerging_on_another_backend(model):
    before = bits(model)
    model.merge()
    model.to(BOXES)
    model.unmerge()
    assert all(isinstance(p.data, Box) for p in model.base_parameters().values())
    assert bits(model) == before


def test_many_merges_leave_no_trace(model):
    before = bits(model)
    for _ in range(20):
        model.merge()
        model.unmerge()
    assert bits(model) == before


def test_merging_does_not_write_into_a_mapped_file(tmp_path: Path):
    np.save(tmp_path / "w.npy", np.ones((6, 4), np.float32))
    base = Linear(6, 4, rng=0)
    base.weight.data = np.load(tmp_path / "w.npy", mmap_mode="r")
    model = moved(LoraModel.adapt(base, LoraConfig(2)))
    model.merge()
    assert np.all(np.load(tmp_path / "w.npy") == 1)
    model.unmerge()
    assert np.all(base.weight.numpy() == 1)
