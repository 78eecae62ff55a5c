"""Neighbouring layers that go through one op: the same values and gradients as one by one, and asked anew at every call."""

import copy
import pickle

import numpy as np
import pytest

from loratk import LoraConfig, LoraModel, Tensor, detect_anomaly, ops
from loratk.errors import AnomalyError, ShapeError
from loratk.lora import LoraLayer
from loratk.nn import MLP, SGD, Linear, ReLU, Sequential, chain


def network(**config):
    """A model of four layers, the first two adapters not zero."""
    base = MLP([6, 9, 5, 7, 3], rng=0, dtype=np.float64)
    model = LoraModel.adapt(base, LoraConfig(rank=2, alpha=3, seed=1, **config))
    rng = np.random.default_rng(2)
    for parameter in model.trainable():
        parameter.assign(rng.standard_normal(parameter.shape))
    return model


def outcome(model, x):
    """The result and all gradients."""
    for parameter in model.parameters():
        parameter.grad = None
    x = Tensor(x, requires_grad=True)
    y = model(x)
    (y * y).sum().backward()
    return [y.numpy(), x.grad, *(p.grad for p in model.trainable())]


@pytest.fixture
def one_by_one(monkeypatch):
    """A function that computes `outcome` without chains, and one that counts the chains taken."""
    taken, call = [], chain.LoraChain.__call__

    def count(self, x):
        taken.append(len(self._options["relus"]))
        return call(self, x)

    monkeypatch.setattr(chain.LoraChain, "__call__", count)

    def plain(model, x):
        with monkeypatch.context() as patch:
            patch.setattr(chain, "_fits", lambda x: False)
            return outcome(model, x)

    return plain, taken


def same(got, want):
    assert len(got) == len(want)
    for g, w in zip(got, want, strict=True):
        assert (g is None) == (w is None)
        if g is not None:
            np.testing.assert_allclose(g, w, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [(1, 6), (11, 6), (2, 3, 6), (0, 6)])
def test_a_chain_computes_what_its_layers_do(one_by_one, shape):
    plain, taken = one_by_one
    model, x = network(), np.random.default_rng(3).standard_normal(shape)
    same(outcome(model, x), plain(model, x))
    assert taken == ([4] if x.size else [])


def test_what_a_chain_cannot_do_breaks_it(one_by_one):
    plain, taken = one_by_one
    x = np.random.default_rng(3).standard_normal((8, 6))
    model = network(targets=["0", "2", "6"])  # the layer without an adapter is frozen, and one of the chain
    same(outcome(model, x), plain(model, x))
    model.base.get("4").unfreeze()  # trains now, and gets gradients
    same(outcome(model, x), plain(model, x))
    assert model.base.get("4").weight.grad is not None
    assert taken == [4, 2]  # and the last layer alone is none


@pytest.mark.parametrize("config", [{"dropout": 0.5}, {"bias": "all"}, {"method": "dora"}])
def test_adapters_that_no_chain_takes(one_by_one, config):
    _, taken = one_by_one
    model = network(**config)
    outcome(model, np.ones((8, 6)))
    assert taken == []
    if "dropout" in config:
        outcome(model.eval(), np.ones((8, 6)))
        assert taken == [4]


def test_every_change_shows_at_the_next_call(one_by_one):
    plain, taken = one_by_one
    model, x = network(), np.random.default_rng(3).standard_normal((8, 6))
    first = outcome(model, x)

    def changed():
        got = outcome(model, x)
        same(got, plain(model, x))
        assert not np.array_equal(got[0], first[0])

    model.add_adapter("other", LoraConfig(rank=1, seed=5))
    model.set_active("other")
    changed()
    model.set_active({"default": 0.5})
    changed()
    model.set_active(["default", "other"])
    changed()
    with model.disabled():
        changed()
    model.set_active("default")
    same(outcome(model, x), first)
    model.merge()
    np.testing.assert_allclose(model(x).numpy(), first[0], rtol=1e-9)
    model.unmerge()
    same(outcome(model, x), first)
    SGD(model.trainable(), lr=0.1).step()
    changed()
    model.layers["2"].base.weight.assign(np.ones((9, 5)))
    changed()
    model.layers["2"].base.bias.assign(np.ones(5))
    changed()
    assert len(taken) > 8


def test_changes_of_the_tree_show_at_the_next_call():
    x = np.random.default_rng(3).standard_normal((8, 6))
    net = MLP([6, 9, 5, 7], rng=0, dtype=np.float64).freeze()
    net(x)
    net.replace("2", Linear(9, 4, rng=1, dtype=np.float64).freeze())
    with pytest.raises(ShapeError, match="Layer 2 of a chain takes 5 inputs, the layer before has 4 outputs"):
        net(x)
    del vars(net)["4"], net.__dict__["3"]
    delattr(net, "2")
    assert net(x).shape == (8, 9)
    net.get("0").bias = None
    np.testing.assert_array_equal(net(x).numpy(), np.maximum(net.get("0").weight.handle().matmul(x), 0))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["deepcopy", "pickle"])
def test_a_copy_goes_its_own_way(copied):
    model, x = network(), np.random.default_rng(3).standard_normal((8, 6))
    want = model(x).numpy()
    other = copied(model)
    for parameter in other.trainable():
        parameter.assign(np.ones(parameter.shape))
    assert not np.allclose(other(x).numpy(), want)
    np.testing.assert_array_equal(model(x).numpy(), want)


def test_what_modules_are_is_asked_once_while_nothing_changes(monkeypatch):
    model, x, asked = network(), np.ones((8, 6)), []
    link = LoraLayer.link
    monkeypatch.setattr(LoraLayer, "link", lambda self: asked.append(self) or link(self))
    optimiser = SGD(model.trainable(), lr=0.1, momentum=0.9)

    def step():
        optimiser.zero_grad()
        model(x).sum().backward()
        optimiser.step()
        return asked.clear()

    step()
    step()
    model(x).sum().backward()
    optimiser.step()
    assert asked == []
    model(x)
    assert asked == []
    model.eval()
    model(x)
    assert len(asked) == 4


def test_layers_of_other_classes_are_called(one_by_one):
    _, taken = one_by_one

    class Doubled(Linear):
        def forward(self, x):
            return self.product(self.input(x)) * 2.0 + self.bias

    class Loud(LoraLayer):
        def forward(self, x):
            return super().forward(x) * 2.0

    doubled = Doubled(4, 4, rng=0).freeze()
    loud = Loud(Linear(4, 4, rng=1).freeze(), None)
    net = Sequential(doubled, ReLU(), loud, ReLU(), Linear(4, 2, rng=2))
    net(np.ones((3, 4), np.float32))
    assert taken == []


def test_a_layer_that_does_not_fit_is_named():
    net = Sequential(Linear(4, 5, rng=0), ReLU(), Linear(6, 2, rng=1)).freeze()
    with pytest.raises(ShapeError, match="Layer 1 of a chain takes 6 inputs, the layer before has 5 outputs"):
        net(np.ones((3, 4), np.float32))
    with pytest.raises(ShapeError, match=r"first weight is \(4, 5\) needs x \(n, 4\), found \(3, 7\)"):
        Sequential(Linear(4, 5, rng=0), ReLU()).freeze()(np.ones((3, 7), np.float32))


def test_the_search_for_values_that_are_not_finite_goes_layer_by_layer():
    model = network()
    model.layers["2"].base.weight.assign(np.full((9, 5), np.inf))
    with detect_anomaly(), pytest.raises(AnomalyError, match="lora_linear"):
        model(np.ones((8, 6)))


def test_no_derivative_where_none_is_asked_for():
    model = network()
    assert not model.eval()(np.ones((2, 6))).detach().requires_grad
    y = ops.relu(model(np.ones((2, 6))))
    assert y.requires_grad
