"""LoRA-drop: the importance of layers is what their updates add, and the adapter stays where it matters."""

import numpy as np
import pytest
from layer_examples import LAYERS
from rank_problems import adapted, error, problem, train

from loratk import LoraConfig, LoraModel, ops
from loratk.errors import ConfigError, StateError
from loratk.lora import importance, lora_drop
from loratk.nn import Linear, Module
from loratk.nn.optim import AdamW
from loratk.plugins import default_registry
from loratk.testing.layer_type import randomize


class Chain(Module):
    """Four layers of one shape and one of another."""

    def __init__(self, dtype=np.float64):
        for i in range(4):
            setattr(self, f"fc{i}", Linear(6, 6, rng=i, dtype=dtype))
        self.head = Linear(6, 3, rng=9, dtype=dtype)

    def forward(self, x):
        for i in range(4):
            x = ops.tanh(getattr(self, f"fc{i}")(x))
        return self.head(x)


SIZES = {"fc0": 0.5, "fc1": 0.05, "fc2": 1.0, "fc3": 0.1, "head": 0.02}
X = np.random.default_rng(0).standard_normal((40, 6))


def chain(**settings):
    """A chain whose layers' updates have these sizes."""
    model = LoraModel.adapt(Chain(), LoraConfig(rank=2, **settings))
    for name, layer in model.layers.items():
        randomize(layer.adapters, int(SIZES[name] * 1000))
        part = layer.adapter("default").block("")
        part.lora_B.assign(SIZES[name] * part.lora_B.numpy())
    return model


def by_hand(model, x):
    """||dW x||^2 by layer, in NumPy."""
    found = {}
    for name, layer in model.layers.items():
        part, weight = layer.adapter("default").block(""), layer.base.weight.numpy()
        gain = part.gain.numpy() if "gain" in part.tensors() else 1.0
        delta = part.scaling * gain * part.lora_A.numpy() @ part.lora_B.numpy()
        if part.first() is not None:
            delta = delta - part.offset()
        found[name] = np.sum((x @ delta) ** 2)
        x = x @ (weight + delta) + layer.base.bias.numpy()
        x = np.tanh(x) if name != "head" else x
    return found


@pytest.mark.parametrize("settings", [{}, {"dropout": 0.5}, {"init": "pissa"}, {"method": "lora_gain"}])
def test_importance_is_the_energy_that_updates_add(settings):
    model = chain(**settings)
    before = {name: p.tobytes() for name, p in model.state_dict().items()}
    states = {name: str(g.bit_generator.state) for name, g in model.generators().items()}
    out = model.eval()(X).numpy()
    model.train()
    got = importance(model, [X[:15], (X[15:], None)])
    for name, want in by_hand(model, X).items():
        assert got[name] == pytest.approx(want, rel=1e-9)
    assert {name: p.tobytes() for name, p in model.state_dict().items()} == before
    assert {name: str(g.bit_generator.state) for name, g in model.generators().items()} == states
    assert all(module.training for _, module in model.modules())
    assert np.array_equal(model.eval()(X).numpy(), out)


@pytest.mark.parametrize("method", [m for m in default_registry().methods if m != "ia3"])
@pytest.mark.parametrize("kind", default_registry().layer_types.values(), ids=lambda kind: kind.name)
def test_every_method_on_every_layer_type_has_one(kind, method):
    make, make_input = LAYERS[kind.module]
    model = LoraModel.adapt(make(np.float64), LoraConfig(rank=1, method=method, targets="*"))
    x = make_input(np.float64)
    with model.disabled():
        base = model(x).numpy()
    randomize(model.layers["root"].adapters, 3)
    want = np.sum((model(x).numpy() - base) ** 2)
    got = importance(model, [x])
    assert sum(got.values()) == pytest.approx(want, rel=1e-9)
    assert set(got) == {".".join(p for p in ("root", block) if p) for block in kind.blocks(model.layers["root"].base)}


def test_the_fewest_layers_with_that_share_are_kept_and_the_file_is_smaller(tmp_path):
    model = chain()
    model.save(tmp_path / "whole.h5")
    energies = by_hand(model, X)
    result = lora_drop(model, [X], threshold=0.9)
    shares = {name: energies[name] / sum(energies.values()) for name in energies}
    order = sorted(shares, key=lambda name: -shares[name])
    assert list(result.shares) == order
    assert result.shares == pytest.approx(shares)
    assert set(result.kept) == {"fc0", "fc2"}
    assert sum(shares[name] for name in result.kept) >= 0.9 > sum(shares[name] for name in result.kept[:-1])
    assert set(result.removed) == set(model.adapters["default"].exclude) == {"fc1", "fc3", "head"}
    assert set(model.layers) == {"fc0", "fc2"}
    model.save(tmp_path / "cut.h5")
    again = LoraModel.from_file(Chain(), tmp_path / "cut.h5")
    assert np.array_equal(again(X).numpy(), model(X).numpy())
    assert (tmp_path / "cut.h5").stat().st_size < (tmp_path / "whole.h5").stat().st_size


def test_threshold_1_keeps_all_and_a_layer_without_effect_may_go():
    model = chain()
    assert lora_drop(model, [X], threshold=1.0).removed == ()
    part = model.layers["fc1"].adapter("default").block("")
    part.lora_B.assign(np.zeros_like(part.lora_B.numpy()))
    assert lora_drop(model, [X], threshold=1.0).removed == ("fc1",)


def test_it_keeps_the_layer_that_learned_and_quality_with_it():
    data = problem(4, 0)
    x, _ = data
    model = adapted({"rank": 4, "alpha": 4})
    train(model, data, 100)
    result = lora_drop(model, [x])
    assert (result.kept, result.removed) == (("left",), ("right",))
    train(model, data, 300)
    assert error(model, data) < 1e-4


def test_the_rest_may_share_one_adapter(tmp_path):
    model = chain()
    count = model.count()
    result = lora_drop(model, [X], rest="share")
    leader, follower = [name for name in result.shares if name in ("fc1", "fc3")]
    assert result.shared == {follower: leader}
    assert result.alone == ("head",)
    one, other = (model.layers[name].adapter("default").block("") for name in (leader, follower))
    assert one is other
    assert model.count() == count - 2 * 12
    assert model.summary().adapters == model.count() - model.summary().base
    optimizer = AdamW(model.trainable(), lr=0.01)
    assert len(model.trainable()) == 8
    before = one.lora_B.numpy().copy()
    ops.mean(model(X) ** 2).backward()
    optimizer.step()
    assert not np.array_equal(one.lora_B.numpy(), before)
    model.save(tmp_path / "a.h5")
    again = LoraModel.from_file(Chain(), tmp_path / "a.h5")
    assert again.layers[leader].adapter("default").block("") is again.layers[follower].adapter("default").block("")
    assert np.array_equal(again(X).numpy(), model(X).numpy())
    model.save(tmp_path / "peft", format="peft")
    plain = LoraModel.from_file(Chain(), tmp_path / "peft")
    np.testing.assert_allclose(plain(X).numpy(), model(X).numpy(), atol=1e-12)


def test_a_shared_adapter_counts_once_for_controllers_and_resizes_whole():
    config = LoraConfig(rank=3, method="adalora", share={"fc1": "fc0", "fc2": "fc0"}, targets="fc*", max_norm=1.0)
    model = LoraModel.adapt(Chain(), config)
    budget, cap = model.controllers(100)
    assert budget.start == 6
    assert len(cap._find()) == 2
    randomize(model.layers["fc0"].adapters, 1)
    randomize(model.layers["fc3"].adapters, 2)
    part = model.layers["fc0"].adapter("default").block("")
    part.lora_E.assign(np.array([1.0, 0, 2]))
    want = model(X).numpy()
    assert model.compact().after == {"fc0": 2, "fc1": 2, "fc2": 2, "fc3": 3}
    np.testing.assert_allclose(model(X).numpy(), want, atol=1e-12)
    part.lora_E.assign(np.zeros(2))
    want = model(X).numpy()
    assert model.compact().removed == ("fc0", "fc1", "fc2")
    np.testing.assert_allclose(model(X).numpy(), want, atol=1e-12)
    assert dict(model.adapters["default"].share) == {}


@pytest.mark.parametrize(
    ("share", "said"),
    [
        ({"head": "fc0"}, r"'head' \(6, 3\) cannot use the adapter of 'fc0' \(6, 6\)"),
        ({"fc1": "fc9"}, "'fc1' shall use the adapter of 'fc9', and there is none of that name"),
        ({"fc1": "fc2", "fc2": "fc0"}, "'fc1' shall use the adapter of 'fc2', which has none of its own"),
        ({"nothing": "fc0"}, "share: 'nothing' matches nothing"),
    ],
)
def test_what_cannot_be_shared_is_refused(share, said):
    model = LoraModel(Chain())
    with pytest.raises(ConfigError, match=said):
        model.add_adapter("a", LoraConfig(rank=2, share=share))
    assert not model.layers
    with pytest.raises(ConfigError, match="which has other settings"):
        model.add_adapter("a", LoraConfig(rank=2, share={"fc1": "fc0"}, rank_pattern={"fc1": 3}))
    with pytest.raises(ConfigError, match="depends on its own weight"):
        model.add_adapter("a", LoraConfig(rank=2, share={"fc1": "fc0"}, method="dora"))
    with pytest.raises(ConfigError, match=r"share\['fc1'\] must be the path of a module, found 3"):
        LoraConfig(share={"fc1": 3})


def test_what_cannot_be_asked_is_refused():
    model = chain()
    with pytest.raises(ConfigError, match=r"threshold must be a number in \(0, 1\], found 0"):
        lora_drop(model, [X], threshold=0)
    with pytest.raises(ConfigError, match="rest must be 'remove' or 'share'"):
        lora_drop(model, [X], rest="x")
    with pytest.raises(ConfigError, match="The data gave no batch"):
        importance(model, [])
    model.set_active([])
    with pytest.raises(StateError, match="'default' must act for its importance to be seen"):
        importance(model, [X])
    fresh = LoraModel.adapt(Chain(), LoraConfig(rank=2))
    with pytest.raises(StateError, match="add 0 to the outputs in all: train it a little first"):
        lora_drop(fresh, [X])
