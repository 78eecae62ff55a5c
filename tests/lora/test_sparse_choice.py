"""A sparse change at the places where the loss asks for one."""

import numpy as np
import pytest
from layer_examples import LAYERS

from loratk import LoraConfig, LoraLinear, LoraModel, Tensor, ops
from loratk.errors import ConfigError
from loratk.nn import MLP, Linear, QKVProjection, Sequential
from loratk.plugins import default_registry


def gradient(layer_type, module, batches, loss):
    """The mean gradient of the weight, (d, k)."""
    module.unfreeze()
    for x, y in batches:
        loss(module(x), y).backward()
    return layer_type.weight(module).grad.reshape(layer_type.shape(module)) / len(batches)


def largest(sizes, count):
    return np.sort(np.argsort(-np.abs(sizes).ravel(), kind="stable")[:count])


def config(choose, **how):
    return LoraConfig(rank=1, method="sparse", options={"choose": choose, **how.pop("options", {})}, **how)


@pytest.mark.parametrize("choose", ["gradient", "snip"])
@pytest.mark.parametrize(
    "kind", [kind for kind in default_registry().layer_types if kind is not QKVProjection], ids=lambda kind: kind.__name__
)
def test_places_are_those_of_the_largest_mean_gradients(kind, choose):
    layer_type = default_registry().layer_type(LAYERS[kind][0](np.float64))
    make, make_input = LAYERS[kind]
    x = make_input(np.float64)
    probe = np.random.default_rng(0).standard_normal(make(np.float64)(x).shape)

    def loss(y, target):
        return ops.mean(y * y * Tensor(target))

    batches = [(x, probe), (x, 1 - probe**2)]
    model = LoraModel.adapt(Sequential(make(np.float64)), config(choose, targets="0", options={"density": 0.2}), data=batches, loss=loss)
    weight = layer_type.read(make(np.float64))
    want = gradient(layer_type, make(np.float64), batches, loss) * (weight if choose == "snip" else 1)
    index = model.state()["0.sparse_index"]
    assert np.array_equal(index, largest(want, len(index)))
    assert not model.state()["0.sparse_values"].any()


def test_a_change_that_is_sparse_is_found_where_it_is_and_learned():
    """Of a quadratic loss the gradient is largest where W has to change most; by size of the weights most places are missed."""
    rng = np.random.default_rng(1)
    x, _ = np.linalg.qr(rng.standard_normal((64, 24)))
    base, change = rng.standard_normal((24, 16)), np.zeros((24, 16))
    places = np.sort(rng.choice(change.size, 40, replace=False))
    change.ravel()[places] = rng.choice([-1, 1], 40) * rng.uniform(1, 2, 40)
    y = x @ (base + change)

    def loss(out, target):
        return y.size * ops.mean((out - Tensor(target)) ** 2)

    left = {}
    for choose, data in [("gradient", {"data": [(x, y)], "loss": loss}), ("magnitude", {})]:
        layer = Linear(24, 16, bias=False, rng=0, dtype=np.float64)
        layer.weight.data[:] = base
        model = LoraModel.adapt(Sequential(layer), config(choose), **data)
        if choose == "gradient":
            assert np.array_equal(model.state()["0.sparse_index"], places)
        loss(model(x), y).backward()
        for parameter in model.trainable():
            parameter.data -= 0.5 * parameter.grad  # columns of x are orthonormal: one step of Newton
        left[choose] = loss(model(x), y).item()
    assert left["gradient"] < 1e-20
    assert left["magnitude"] > 0.5 * np.sum(change**2)


def test_layers_choose_by_their_own_rule_and_only_what_needs_data_sees_it(tmp_path):
    x = np.random.default_rng(0).standard_normal((8, 6)).astype(np.float32)
    mixed = config("random", layer_pattern={"2": {"options": {"choose": "gradient"}}})

    def loss(y, target):
        return ops.mean((y - Tensor(target)) ** 2)

    model = LoraModel.adapt(MLP([6, 5, 4], rng=0), mixed, data=[(x, x[:, :4])], loss=loss)
    plain = LoraModel.adapt(MLP([6, 5, 4], rng=0), config("random"))
    assert np.array_equal(model.state()["0.sparse_index"], plain.state()["0.sparse_index"])
    assert not np.array_equal(model.state()["2.sparse_index"], plain.state()["2.sparse_index"])
    model.save(tmp_path / "a.h5")
    again = LoraModel(MLP([6, 5, 4], rng=0))
    again.load(tmp_path / "a.h5")
    assert all(np.array_equal(array, again.state("default")[name]) for name, array in model.state().items())


def test_each_column_block_of_a_projection_chooses_by_its_own_gradient():
    layer = QKVProjection(4, heads=2, kv_heads=1, rng=1, dtype=np.float64)
    x = np.random.default_rng(5).standard_normal((2, 3, 4))
    probe = np.random.default_rng(0).standard_normal(layer(x).shape)

    def loss(y, target):
        return ops.mean(y * y * Tensor(target))

    whole = gradient(
        default_registry().layer_type(layer), QKVProjection(4, heads=2, kv_heads=1, rng=1, dtype=np.float64), [(x, probe)], loss
    )
    model = LoraModel.adapt(Sequential(layer), config("gradient", options={"density": 0.2}), data=[(x, probe)], loss=loss)
    start = 0
    for name, width in (("q", 4), ("k", 2), ("v", 2)):
        index = model.state()[f"0.{name}.sparse_index"]
        assert np.array_equal(index, largest(whole[:, start : start + width], len(index)))
        start += width


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({}, "the method 'sparse' starts from data: give data=, an iterable of batches of pairs"),
        ({"data": [(np.ones((2, 6), np.float32), 0)]}, "the method 'sparse' starts from gradients: give loss="),
    ],
)
def test_without_data_it_cannot_start(how, said):
    with pytest.raises(ConfigError, match=said):
        LoraModel.adapt(MLP([6, 5, 4], rng=0), config("gradient"), **how)


def test_an_adapter_alone_has_no_data():
    with pytest.raises(ConfigError, match="the method 'sparse' starts from the gradients of the layer in data, and there are none"):
        LoraLinear(6, 5, config("snip"), rng=0)
