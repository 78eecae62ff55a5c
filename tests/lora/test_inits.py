"""Initialisations: the model starts as the base, whatever the factors start from, and the base itself never changes."""

import copy

import numpy as np
import pytest
from layer_examples import LAYERS

from loratk import LoraConfig, LoraModel, build_registry, hookimpl, ops
from loratk.errors import ConfigError
from loratk.lora import Init, Started
from loratk.nn import MLP
from loratk.plugins import default_registry, use_registry
from loratk.testing.layer_type import randomize


class Halves(Init):
    """The first product is no zero, and is taken off the base."""

    name, moves_base = "halves", True

    def start(self, start):
        d, k = start.weight.shape
        make = start.rng.standard_normal
        return Started(make((d, start.rank)).astype(start.weight.dtype), make((start.rank, k)).astype(start.weight.dtype))


class Plugin:
    @hookimpl
    def register_inits(self):
        return [Halves()]


@pytest.fixture
def halves():
    with use_registry(build_registry(extra=[("halves", Plugin())])) as registry:
        yield registry


CONFIG = {"rank": 2, "alpha": 3.0, "init": "halves", "targets": "*"}


@pytest.mark.parametrize("kind", default_registry().layer_types, ids=lambda kind: kind.__name__)
def test_a_moved_base_works_on_every_layer_type(halves, kind):
    make, make_input = LAYERS[kind]
    module, x = make(np.float64), make_input(np.float64)
    base = module(x).numpy()
    before = {name: np.array(p.numpy()) for name, p in module.named_parameters()}
    model = LoraModel.adapt(module, LoraConfig(**CONFIG | {"rank": 1}))
    assert np.allclose(model(x).numpy(), base, atol=1e-10)
    randomize(model.layers["root"].adapters, 5)
    fused = model(x).numpy()
    assert not np.allclose(fused, base)
    model.layers["root"].use_fused = False
    assert np.allclose(model(x).numpy(), fused, atol=1e-10)
    model.merge()
    assert np.allclose(model(x).numpy(), fused, atol=1e-10)
    model.unmerge()
    model.unfreeze_base()
    assert np.allclose(model(x).numpy(), fused, atol=1e-10)
    assert all(np.array_equal(p.numpy(), before[name]) for name, p in model.unload().named_parameters())


def test_chained_layers_of_a_moved_base_are_those_of_each_alone(halves):
    model = LoraModel.adapt(MLP([6, 5, 4], rng=0, dtype=np.float64), LoraConfig(**CONFIG))
    for layer in model.layers.values():
        randomize(layer.adapters, 3)
    other = copy.deepcopy(model)
    for layer in other.layers.values():
        layer.use_fused = False
    x, grads = np.random.default_rng(0).standard_normal((7, 6)), []
    for each in (model, other):
        ops.mean(each(x) ** 2).backward()
        grads.append([p.grad for p in each.trainable()])
    assert np.allclose(model(x).numpy(), other(x).numpy(), atol=1e-12)
    assert len(grads[0]) == 4  # the first factors do not train
    assert all(np.allclose(a, b, atol=1e-12) for a, b in zip(*grads, strict=True))


def test_two_adapters_with_weights_add_up_beside_a_moved_base(halves):
    model = LoraModel.adapt(MLP([6, 5], rng=0, dtype=np.float64), LoraConfig(**CONFIG))
    model.add_adapter("plain", LoraConfig(rank=1, init="gaussian"))
    randomize(model.layers["0"].adapters, 4)
    x = np.random.default_rng(0).standard_normal((7, 6))
    with model.disabled():
        base = model(x).numpy()
    alone = []
    for name in ("default", "plain"):
        model.set_active(name)
        alone.append(model(x).numpy() - base)
    model.set_active({"default": 0.5, "plain": -2.0})
    assert np.allclose(model(x).numpy() - base, 0.5 * alone[0] - 2 * alone[1], atol=1e-10)


def test_a_file_brings_the_first_factors_back(halves, tmp_path):
    model = LoraModel.adapt(MLP([6, 5], rng=0), LoraConfig(**CONFIG))
    randomize(model.layers["0"].adapters, 4)
    model.save(tmp_path / "a.h5")
    again = LoraModel.from_file(MLP([6, 5], rng=0), tmp_path / "a.h5")
    assert {name: p.requires_grad for name, p in again.layers["0"].adapter("default").tensors().items()} == {
        "lora_A": True, "lora_B": True, "initial_A": False, "initial_B": False,
    }  # fmt: skip
    x = np.random.default_rng(0).standard_normal((7, 6)).astype(np.float32)
    assert np.array_equal(again(x).numpy(), model(x).numpy())


def test_methods_that_look_at_the_weight_refuse_a_moved_base(halves):
    with pytest.raises(ConfigError, match="takes its first product off the base's weight, which the method 'dora' does not allow"):
        LoraConfig(method="dora", init="halves")


def test_an_unknown_init_option_is_refused(halves):
    with pytest.raises(ConfigError, match="the init 'halves' has no option 'x'"):
        LoraConfig(init={"name": "halves", "x": 1})
