"""Resizing an adapter in a model: the best update of a rank, the same scaling, a config and a file that say so."""

import numpy as np
import pytest
from layer_examples import LAYERS
from rank_problems import D, K, Pair, adapted, ranks

from loratk import LoraConfig, LoraModel
from loratk.errors import ConfigError, ShapeError, StateError, UnknownNameError
from loratk.nn import MLP, AdamW
from loratk.plugins import default_registry
from loratk.testing.layer_type import randomize

WITH_FACTORS = ["lora", "dora", "lora_gain", "adalora", "sora", "dylora", "elastic"]
X = np.random.default_rng(0).standard_normal((5, D))


def make(**settings):
    model = adapted({"rank": 5, "alpha": 4, **settings}, np.float64)
    for i, layer in enumerate(model.layers.values()):
        randomize(layer.adapters, i)
    return model


def deltas(model):
    return {n: p.delta(model.layers[n].base.weight.numpy()) for n, p in parts(model).items()}


def parts(model):
    return {name: layer.adapter("default").block("") for name, layer in model.layers.items()}


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("method", ["lora", "lora_gain", "adalora", "sora", "elastic"])
def test_the_update_becomes_the_best_of_its_rank_and_the_scaling_stays(tmp_path, method, rslora):
    model = make(method=method, rslora=rslora)
    before, scaling = deltas(model), parts(model)["left"].scaling
    report = model.resize(rank=2)
    assert report.before == dict.fromkeys(("left", "right"), 5)
    assert report.after == ranks(model) == dict.fromkeys(("left", "right"), 2)
    for name, delta in deltas(model).items():
        u, s, v = np.linalg.svd(before[name])
        np.testing.assert_allclose(delta, (u[:, :2] * s[:2]) @ v[:2], atol=1e-10)
    assert parts(model)["left"].scaling == pytest.approx(scaling, rel=1e-14)
    model.save(tmp_path / "a.h5")
    again = LoraModel.from_file(Pair(np.float64), tmp_path / "a.h5")
    assert np.array_equal(again(X).numpy(), model(X).numpy())
    assert {part.method.name for part in parts(again).values()} == {"lora"}


def test_energy_decides_layer_by_layer():
    model = make()
    for part, size in zip(parts(model).values(), (1e-3, 1.0), strict=True):
        a, b = (np.linalg.qr(np.random.default_rng(1).standard_normal((n, 5)))[0] for n in (D, K))
        part.lora_A.assign(a * [3.0, 1, size, size, size])
        part.lora_B.assign(b.T)
    before = deltas(model)
    assert model.resize(energy=0.999).after == {"left": 2, "right": 5}
    for name, delta in deltas(model).items():
        assert np.linalg.norm(delta - before[name]) <= (0.001**0.5) * np.linalg.norm(before[name])
    assert model.resize(energy=0.5, rank=4).after == {"left": 1, "right": 1}
    config = model.adapters["default"]
    assert config.layer("left").rank == 1
    assert model.resize(energy=1.0, rank=4).after == {"left": 1, "right": 1}  # energy never adds ranks


@pytest.mark.parametrize("method", [m for m in WITH_FACTORS if m != "dora"])
def test_without_a_rule_it_is_plain_lora_exactly(method):
    model = make(method=method)
    want = model(X).numpy()
    model.resize()
    assert {part.method.name for part in parts(model).values()} == {"lora"}
    assert model.adapters["default"].method == "lora"
    np.testing.assert_allclose(model(X).numpy(), want, atol=1e-12)


def test_what_an_init_takes_off_the_base_comes_into_the_factors():
    model = make(init="pissa")
    want, before = model(X).numpy(), deltas(model)
    model.resize()
    assert ranks(model) == {"left": 10, "right": 10}
    assert parts(model)["left"].first() is None
    assert model.adapters["default"].init is None
    np.testing.assert_allclose(model(X).numpy(), want, atol=1e-10)
    model.resize(rank=3)
    for name, delta in deltas(model).items():
        s = np.linalg.svd(before[name])[1]
        assert np.linalg.norm(delta - before[name]) == pytest.approx(np.linalg.norm(s[3:]), rel=1e-9)


def test_dora_stays_dora_and_its_magnitude_as_it_is():
    model = make(method="dora")
    magnitude = parts(model)["left"].magnitude.numpy().copy()
    before = parts(model)["left"].lora_A.numpy() @ parts(model)["left"].lora_B.numpy()
    model.resize(rank=4)
    part = parts(model)["left"]
    assert part.method.name == "dora"
    assert np.array_equal(part.magnitude.numpy(), magnitude)
    u, s, v = np.linalg.svd(before)
    np.testing.assert_allclose(part.lora_A.numpy() @ part.lora_B.numpy(), (u[:, :4] * s[:4]) @ v[:4], atol=1e-10)


def test_a_larger_rank_grows_without_effect_and_can_train():
    model = make()
    want, held = model(X).numpy(), parts(model)["left"].lora_A
    a = held.numpy().copy()
    assert model.resize(rank=100).after == {"left": 12, "right": 12}
    np.testing.assert_allclose(model(X).numpy(), want, atol=1e-12)
    assert np.array_equal(held.numpy()[:, :5], a)
    (model(X) ** 2).sum().backward()
    assert parts(model)["left"].lora_B.grad[5:].any()


@pytest.mark.parametrize("method", WITH_FACTORS)
@pytest.mark.parametrize("kind", default_registry().layer_types.values(), ids=lambda kind: kind.name)
def test_every_layer_type_resizes_and_saves(tmp_path, kind, method):
    make_module, make_input = LAYERS[kind.module]
    x = make_input(np.float64)
    model = LoraModel.adapt(make_module(np.float64), LoraConfig(rank=2, method=method, targets="*"))
    randomize(model.layers["root"].adapters, 1)
    model.resize(rank=1)
    model.save(tmp_path / "a.h5")
    again = LoraModel.from_file(make_module(np.float64), tmp_path / "a.h5")
    assert {part.rank for part in again.layers["root"].adapter("default").blocks().values()} == {1}
    np.testing.assert_allclose(again(x).numpy(), model(x).numpy(), atol=1e-12)


@pytest.mark.parametrize("method", ["adalora", "sora", "elastic"])
@pytest.mark.parametrize("kind", default_registry().layer_types.values(), ids=lambda kind: kind.name)
def test_every_layer_type_compacts_without_effect_on_its_output(tmp_path, kind, method):
    make_module, make_input = LAYERS[kind.module]
    x = make_input(np.float64)
    model = LoraModel.adapt(make_module(np.float64), LoraConfig(rank=2, method=method, targets="*"))
    layer = model.layers["root"]
    randomize(layer.adapters, 1)
    first, *others = layer.adapter("default").blocks().items()
    for i, (_, part) in enumerate([first, *others]):
        for name, array in part.tensors().items():
            if name in ("lora_E", "gate") or (method == "elastic" and name == "lora_B"):
                values = array.numpy().copy()
                values[1 if i == 0 else slice(None)] = 0
                array.assign(values)
    want = model(x).numpy()
    report = model.compact()
    assert sorted(report.after.values()) == [0] * len(others) + [1]
    np.testing.assert_allclose(model(x).numpy(), want, atol=1e-12)
    model.save(tmp_path / "a.h5")
    np.testing.assert_allclose(LoraModel.from_file(make_module(np.float64), tmp_path / "a.h5")(x).numpy(), want, atol=1e-12)


@pytest.mark.parametrize(("bias", "left"), [("none", {"0"}), ("lora_only", {"0", "2"}), ("all", {"0", "2"})])
def test_a_bias_that_trains_stays_when_its_layer_has_no_ranks_left(tmp_path, bias, left):
    model = LoraModel.adapt(MLP([6, 5, 4], rng=0), LoraConfig(rank=2, method="sora", bias=bias))
    for i, layer in enumerate(model.layers.values()):
        randomize(layer.adapters, i)
    model.layers["2"].adapter("default").block("").gate.assign(np.zeros(2, np.float32))
    x = X[:, :6].astype(np.float32)
    want = model(x).numpy()
    report = model.compact()
    assert set(model.layers) == left
    assert report.after["2"] == (1 if bias == "lora_only" else 0)
    np.testing.assert_allclose(model(x).numpy(), want, atol=1e-6)
    model.save(tmp_path / "a.h5")
    again = LoraModel.from_file(MLP([6, 5, 4], rng=0), tmp_path / "a.h5")
    np.testing.assert_allclose(again(x).numpy(), want, atol=1e-6)


def test_patterns_of_a_config_survive_where_they_still_mean_something():
    config = {
        "rank": 4, "targets": ["0", "2", "4"], "method": "adalora", "alpha": 4.0,
        "layer_pattern": {"4": {"method": "dora", "rank": 2, "dropout": 0.25}, "2": {"dropout": 0.5}}, "rank_pattern": {"2": 3},
    }  # fmt: skip
    model = LoraModel.adapt(MLP([6, 5, 4, 3], rng=0), LoraConfig(**config))
    for i, layer in enumerate(model.layers.values()):
        randomize(layer.adapters, i)
    model.layers["0"].adapter("default").block("").lora_E.assign(np.array([1, 0, 0, 1], np.float32))
    model.layers["2"].adapter("default").block("").lora_E.assign(np.zeros(3, np.float32))
    model.compact()
    got = model.adapters["default"]
    assert (got.layer("0").rank, got.layer("0").method, got.layer("0").scaling) == (2, "adalora", 1.0)
    assert (got.layer("4").rank, got.layer("4").method, got.layer("4").dropout) == (2, "dora", 0.25)
    assert got.exclude == ("2",)
    assert LoraModel.adapt(MLP([6, 5, 4, 3], rng=0), got).summary().layers
    model.resize(rank=1)
    got = model.adapters["default"]
    assert (got.layer("0").rank, got.layer("0").method) == (1, "lora")
    assert (got.layer("4").rank, got.layer("4").method, got.layer("4").dropout) == (1, "dora", 0.25)
    again = LoraModel.adapt(MLP([6, 5, 4, 3], rng=0), got)
    assert {n: (p.rank, p.method.name, p.scaling) for n, p in parts(again).items()} == {
        n: (p.rank, p.method.name, p.scaling) for n, p in parts(model).items()
    }


def test_an_optimiser_made_before_refuses_what_changed():
    model = make()
    optimizer = AdamW(model.trainable(), lr=0.1)
    model.resize(rank=2)
    (model(X) ** 2).sum().backward()
    with pytest.raises(ShapeError, match="after resizing a parameter, make a new optimiser"):
        optimizer.step()
    AdamW(model.trainable(), lr=0.1).step()


def test_what_cannot_be_resized_is_refused_and_nothing_changes():
    model = make(layer_pattern={"right": {"method": "loha"}})
    before = {name: value.tobytes() for name, value in model.state().items()}
    with pytest.raises(ConfigError, match="'right': the update of the method 'loha' is not kept as factors"):
        model.resize(rank=1)
    with pytest.raises(ConfigError, match=r"(?s)rank must be a whole number.*found 0.*energy must be a number in \(0, 1\], found 2"):
        model.resize(rank=0, energy=2)
    with pytest.raises(UnknownNameError, match="There is no adapter 'x'"):
        model.compact("x")
    model.merge()
    with pytest.raises(StateError, match="Cannot resize an adapter while 'default' is merged"):
        model.compact()
    model.unmerge()
    assert {name: value.tobytes() for name, value in model.state().items()} == before
    assert model.compact().after == {"left": 5, "right": 5}
