"""Initialisations from data: what they make of it, and that looking at it changes nothing."""

import copy

import numpy as np
import pytest
from init_examples import mse, rows, start
from layer_examples import LAYERS

from loratk import LoraConfig, LoraModel, Tensor, num_threads, ops
from loratk.errors import AnomalyError
from loratk.lora.evidence import Watch, observe
from loratk.lora.inits.gatherers import Principal, SecondMoments
from loratk.lora.inits.lora_ga import DIRECTIONS
from loratk.nn import MLP, Dropout, Linear, Module, Sequential
from loratk.plugins import default_registry
from loratk.testing.layer_type import randomize

X = rows().astype(np.float32)

# What is gathered


@pytest.mark.parametrize("kind", default_registry().layer_types, ids=lambda kind: kind.__name__)
def test_gathered_gradients_and_inputs_are_those_of_the_weight(kind):
    layer_type = default_registry().layer_types[kind]
    make, make_input = LAYERS[kind]
    module, x = make(np.float64), make_input(np.float64)
    d, k = layer_type.shape(module)
    probe = np.random.default_rng(0).standard_normal(module(x).shape)

    def loss(y, target):
        return ops.mean(y * Tensor(target))

    class Keeping(list):
        def add(self, rows):
            self.append(rows)

    kept = Keeping()
    watch = Watch(layer_type, [kept], gradient=True)
    observe(module.freeze(), {"root": watch}, [(x, probe), (x, 3 * probe)], loss)
    module.unfreeze()
    loss(module(x), 2 * probe).backward()
    want = layer_type.weight(module).grad.reshape(d, k)
    assert np.allclose(watch.mean(), want, atol=1e-12)  # the mean over the batches
    assert np.allclose(kept[0].T @ (2 * probe.reshape(-1, k)) / probe.size, want, atol=1e-12)
    assert len(kept) == 2


def test_principal_components_are_those_of_all_rows_however_they_come():
    x = rows(900, 40) * 0.8 ** np.arange(40) + 5
    centred = x - x.mean(axis=0)
    _, s, v = np.linalg.svd(centred, full_matrices=False)
    whole, cut = Principal(40, 4), Principal(40, 4)
    whole.add(x)
    for part in np.split(x, [1, 3, 300, 301, 800]):
        cut.add(part)
    assert all(np.array_equal(a, b) for a, b in zip(whole.components(), cut.components(), strict=True))
    directions, values, ratios = whole.components()
    assert np.allclose(values, s[:4], rtol=1e-3)
    assert np.allclose(np.abs(np.sum(directions * v[:4], axis=1)), 1, atol=1e-3)
    assert np.allclose(ratios, s[:4] ** 2 / np.sum(s**2), rtol=2e-3)
    exact = Principal(40, 40)
    exact.add(x)
    assert np.allclose(exact.components()[1], s, rtol=1e-12)


def test_second_moments_weigh_batches_alike():
    one, two = rows(5), 1000 * rows(7)
    moments = SecondMoments(6)
    for x in (one, np.zeros((2, 6)), two):
        moments.add(x)
    want = sum((x / np.abs(x).max()).T @ (x / np.abs(x).max()) for x in (one, two)) / 3
    assert np.allclose(moments.mean(), want)


# What is made of it


def narrow():
    """Two layers; the inputs of the first vary in one direction, those of the second in all."""
    base = Sequential(Linear(12, 12, rng=0, dtype=np.float64), Linear(12, 12, rng=1, dtype=np.float64))
    x = np.random.default_rng(0).standard_normal((300, 1)) @ np.ones((1, 12)) + 0.01 * rows(300, 12)
    return base, x


class Noisy(Module):
    """Adds to its input what makes it vary in all directions."""

    def __init__(self, noise):
        self._noise = noise

    def forward(self, x):
        return x + self._noise


def test_eva_gives_rank_to_the_layers_whose_inputs_vary_in_more_directions(tmp_path):
    base, x = narrow()
    base = Sequential(vars(base)["0"], Noisy(5 * rows(300, 12, 9)), vars(base)["1"])
    config = LoraConfig(rank=3, alpha=6, init="eva", targets="*")
    model = LoraModel.adapt(base, config, data=[x])
    ranks = {name: layer.adapter("default").block("").rank for name, layer in model.layers.items()}
    assert ranks == {"0": 1, "2": 5}
    assert all(layer.adapter("default").block("").scaling == 2.0 for layer in model.layers.values())
    assert model.adapters["default"].rank_pattern == {"0": 1, "2": 5}
    assert model.adapters["default"].alpha_pattern == {"0": 2.0, "2": 10.0}
    a = model.state()["0.lora_A"]
    assert np.allclose(np.abs(a[:, 0]), 12**-0.5, atol=1e-3)
    model.save(tmp_path / "a.h5")
    again = LoraModel.from_file(model.unload(), tmp_path / "a.h5")  # without data
    assert np.array_equal(again.state()["0.lora_A"], a)


def test_eva_keeps_ranks_with_rho_1_and_the_scaling_always():
    base, x = narrow()
    base = Sequential(vars(base)["0"], Noisy(5 * rows(300, 12, 9)), vars(base)["1"])
    kept = LoraModel.adapt(copy.deepcopy(base), LoraConfig(rank=2, init={"name": "eva", "rho": 1}, targets="*"), data=[x])
    assert [layer.adapter("default").block("").rank for layer in kept.layers.values()] == [2, 2]
    config = LoraConfig(rank=2, alpha=2, init="eva", rank_pattern={"0": 3}, alpha_pattern={"0": 3**0.5}, targets="*", rslora=True)
    model = LoraModel.adapt(base, config, data=[x])
    parts = {name: layer.adapter("default").block("") for name, layer in model.layers.items()}
    assert {name: part.rank for name, part in parts.items()} == {"0": 1, "2": 4}
    assert parts["0"].scaling == pytest.approx(1)
    assert parts["2"].scaling == pytest.approx(2**0.5)


def test_a_layer_that_eva_gives_no_rank_has_no_adapter(tmp_path):
    wide = Sequential(Linear(40, 8, rng=0), Noisy(np.zeros(8, np.float32)), Linear(8, 8, rng=1))
    x = rows(500, 40).astype(np.float32)  # 40 directions of a 40th each; behind the first layer 8 of more each
    model = LoraModel.adapt(wide, LoraConfig(rank=2, init={"name": "eva", "rho": 4}, targets="*"), data=[x])
    assert list(model.layers) == ["2"]
    assert model.adapters["default"].exclude == ("0",)
    assert model.adapters["default"].rank_of("2") == 4
    model.save(tmp_path / "a.npz")
    assert list(LoraModel.from_file(model.unload(), tmp_path / "a.npz").layers) == ["2"]


@pytest.mark.parametrize("mode", ["ipm", "kpm"])
def test_corda_is_the_decomposition_weighted_by_the_inputs(mode):
    x, w = rows(200, 9) * np.arange(1, 10), np.random.default_rng(0).standard_normal((9, 7))
    moments = SecondMoments(9)
    moments.add(x)
    c = moments.mean() + 0.01 * np.mean(np.diag(moments.mean())) * np.eye(9)
    u, s, v = np.linalg.svd(c @ w, full_matrices=False)
    chosen = slice(2) if mode == "ipm" else slice(-2, None)
    a, b = start("corda", w, evidence=moments, mode=mode)
    assert np.allclose(0.5 * a @ b, np.linalg.inv(c) @ (u[:, chosen] * s[chosen]) @ v[chosen], atol=1e-12)
    assert np.allclose(np.linalg.norm(b, axis=1), np.sqrt(s[chosen] / 0.5))


def authors_lora_ga(g, w, rank, direction, scale, scaling):
    """The formula of LoRA-GA's authors in torch's orientation: G and W (k, d), A (r, d), B (k, r)."""
    u, _, v = np.linalg.svd(g, full_matrices=False)
    a, b = {
        "ArB2r": (v[:rank], u[:, rank : 2 * rank]),
        "A2rBr": (v[rank : 2 * rank], u[:, :rank]),
        "ArBr": (v[1 : 2 * rank : 2], u[:, 0 : 2 * rank : 2]),
    }[direction]
    if scale == "stable":
        return a * len(w) ** 0.25 / 4, b * len(w) ** 0.25 / 4
    if scale == "gd":
        return a / scaling, b / scaling
    if scale == "weightS":
        factor = np.mean(np.sqrt(np.linalg.svd(w)[1][:rank] / scaling))
        return a * factor, b * factor
    return a, b


@pytest.mark.parametrize("niter", [None, 4])
@pytest.mark.parametrize("scale", ["stable", "gd", "unit", "weightS"])
@pytest.mark.parametrize("direction", ["ArB2r", "A2rBr", "ArBr"])
def test_lora_ga_is_the_authors_formula(direction, scale, niter):
    rng = np.random.default_rng(4)
    w = rng.standard_normal((40, 30))
    g = (rng.standard_normal((40, 30)) * 0.5 ** np.arange(30)) @ np.linalg.qr(rng.standard_normal((30, 30)))[0]
    a, b = start("lora_ga", w, evidence=g, direction=direction, scale=scale, niter=niter)
    theirs_a, theirs_b = authors_lora_ga(g.T, w.T, 2, direction, scale, 0.5)
    signs = np.sign(np.sum(a * theirs_a.T, axis=0)), np.sign(np.sum(b * theirs_b.T, axis=1))
    assert np.allclose(a * signs[0], theirs_a.T, atol=1e-6)
    assert np.allclose(b * signs[1][:, None], theirs_b.T, atol=1e-6)


def test_lora_ga_at_random_shares_no_direction_and_is_clipped():
    rng = np.random.default_rng(4)
    w, g = 1e-3 * rng.standard_normal((40, 30)), rng.standard_normal((40, 30))
    u, _, v = np.linalg.svd(g, full_matrices=False)
    a, b = start("lora_ga", w, evidence=g, rank=4, direction="random", scale="unit", niter=None)
    for_a, for_b = (np.abs(x).argmax(axis=0) for x in (u.T @ a, v @ b.T))
    assert sorted([*for_a, *for_b]) == list(range(8))
    a, b = start("lora_ga", w, evidence=g, rank=4, norm_clip=True)
    assert np.abs(0.5 * a @ b).max() == pytest.approx(np.abs(w).max())
    assert "random" in DIRECTIONS


def cosine(a, b):
    return float(np.sum(a * b) / (np.linalg.norm(a) * np.linalg.norm(b)))


def test_lora_gas_first_step_follows_the_full_gradient_best():
    x, target = rows(200, 24), rows(200, 16, 7)
    w = Linear(24, 16, bias=False, rng=0, dtype=np.float64)
    w.unfreeze()
    mse(w(x), target).backward()
    full = np.array(w.weight.grad)
    w.zero_grad()
    got = {}
    for name in ("kaiming", "gaussian", "orthogonal", "pissa", "olora", "lora_ga"):
        how = {"data": [(x, target)], "loss": mse} if name == "lora_ga" else {}
        model = LoraModel.adapt(copy.deepcopy(w), LoraConfig(rank=4, alpha=4, init=name, targets="*"), **how)
        part = model.layers["root"].adapter("default").block("")
        before = part.delta(w.weight.numpy())
        mse(model(x), target).backward()
        for p in model.trainable():
            p.data -= 1e-6 * p.grad
        got[name] = cosine(before - part.delta(w.weight.numpy()), full)
    assert got["lora_ga"] == max(got.values())
    assert got["lora_ga"] > 0.8 > 1.8 * got["kaiming"] > 0.7


# Looking changes nothing


def test_the_model_is_as_it_was_also_after_an_error():
    module = Sequential(MLP([6, 5, 4], rng=0), Dropout(0.5, rng=1), Linear(4, 3, rng=2))
    module.train()
    vars(module)["2"].eval()
    model = LoraModel(module)
    model.add_adapter("other", LoraConfig(rank=1, targets="0.0"))
    model.set_active("other")
    model.unfreeze_base()
    for parameter in model.parameters():
        parameter.grad = np.ones(parameter.shape, parameter.dtype)
    tree = [(name, id(part), part.training) for name, part in model.modules()]
    arrays, generators = model.state_dict(), {name: g.bit_generator.state for name, g in model.generators().items()}
    config, x = LoraConfig(rank=1, init="lora_ga", targets=["2"]), rows().astype(np.float32)

    def check():
        assert [(name, id(part), part.training) for name, part in model.modules()] == tree
        assert all(np.array_equal(array, arrays[name]) for name, array in model.state_dict().items())
        assert {name: g.bit_generator.state for name, g in model.generators().items()} == generators
        assert all(np.array_equal(p.grad, np.ones(p.shape)) for p in model.base.parameters() if p.requires_grad)
        assert model.enabled
        assert model.active == {"other": 1.0}

    def broken(y, target):
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        model.add_adapter("new", config, data=[(x, 0)], loss=broken)
    check()
    with pytest.raises(AnomalyError, match="loss is nan"):
        model.add_adapter("new", config, data=[(x, 0)], loss=lambda y, _: ops.mean(y) * float("nan"))
    check()
    assert list(model.adapters) == ["other"]
    model.add_adapter("new", config, data=[(x, 0)], loss=lambda y, _: ops.mean(y * y))
    assert all(np.array_equal(p.grad, np.ones(p.shape)) for p in model.base_parameters().values() if p.requires_grad)


@pytest.mark.parametrize("init", ["eva", "lora_ga"])
def test_what_is_seen_is_the_base_alone(init):
    how = {"data": [(X, X[:, :4])], "loss": mse} if init == "lora_ga" else {"data": [X]}
    states = []
    for active in ([], ["other"]):
        model = LoraModel.adapt(MLP([6, 5, 4], rng=0), LoraConfig(rank=2), adapter="other")
        randomize(vars(model.layers["0"])["adapters"], 2)
        model.set_active(active)
        model.add_adapter("new", LoraConfig(rank=2, init=init), **how)
        states.append(model.state("new"))
    assert all(np.array_equal(array, states[1][name]) for name, array in states[0].items())


@pytest.mark.parametrize("name", ["eva", "corda", "lora_ga"])
def test_the_same_bits_whatever_the_threads(name):
    def made(threads):
        with num_threads(threads):
            how = {"loss": mse} if name == "lora_ga" else {}
            config = LoraConfig(rank=2, init=name)
            data = [(rows(500).astype(np.float32), rows(500, 4).astype(np.float32))] * 2
            return LoraModel.adapt(MLP([6, 70, 4], rng=0), config, data=data, **how).state()

    one, two = made(1), made(2)
    assert one.keys() == two.keys()
    assert all(np.array_equal(one[key], two[key]) for key in one)
