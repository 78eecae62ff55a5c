"""Adapters in module trees: where they go, which of them act, what trains, and how they are taken out again."""

import copy
import pickle

import numpy as np
import pytest

from loratk import LoraConfig, LoraModel, Tensor
from loratk.errors import ConfigError, DtypeError, StateError, UnknownNameError
from loratk.lora import LoraLayer
from loratk.lora.methods.lora import Lora
from loratk.nn import (
    MLP,
    BatchNorm,
    Conv2d,
    Embedding,
    LayerNorm,
    Linear,
    Module,
    ReLU,
    Sequential,
    Transformer,
    TransformerEncoderLayer,
)
from loratk.plugins import build_registry, default_registry
from loratk.testing.layer_type import randomize

CONFIG = LoraConfig(2, 4)


def moved(model, seed=0):
    """The model with adapters that do something."""
    for i, layer in enumerate(model.layers.values()):
        randomize(layer.adapters, seed + i)
    return model


@pytest.fixture
def x():
    return np.random.default_rng(0).standard_normal((3, 6)).astype(np.float32)


@pytest.fixture
def model():
    return LoraModel.from_sizes([6, 5, 4], CONFIG)


# Chains of layers


def test_from_sizes():
    model = LoraModel.from_sizes([784, 256, 128, 10], LoraConfig.low_rank())
    assert list(model.layers) == ["0", "2", "4"]
    assert [layer.weight.shape for layer in model.layers.values()] == [(784, 256), (256, 128), (128, 10)]
    assert model.count(trainable=True) == 6248
    assert model.count() == 241394
    assert model(np.zeros((32, 784), np.float32)).shape == (32, 10)


def test_from_sizes_with_one_layer_and_with_an_activation_at_the_end(x):
    assert list(LoraModel.from_sizes([10, 5], LoraConfig.default(4)).layers) == ["0"]
    got = LoraModel.from_sizes([6, 5, 4], CONFIG, activation="tanh", output_activation=True)(100 * x).numpy()
    assert abs(got).max() <= 1
    assert LoraModel.from_sizes([6, 4], CONFIG, bias=False).layers["0"].bias is None
    assert LoraModel.from_sizes([6, 4], CONFIG, dtype=np.float64)(x.astype(float)).dtype == np.float64


@pytest.mark.parametrize("sizes", [[], [10], [4, 0], [4, 2.5], [4, -1]])
def test_sizes_that_make_no_network(sizes):
    with pytest.raises(ConfigError):
        LoraModel.from_sizes(sizes, LoraConfig(1))


def test_from_pretrained_keeps_the_values(x):
    rng = np.random.default_rng(1)
    weights = [rng.standard_normal(shape).astype(np.float32) for shape in ((6, 5), (5, 4))]
    bias = rng.standard_normal(5).astype(np.float32)
    model = LoraModel.from_pretrained(weights, [bias, None], CONFIG)
    want = np.maximum(x @ weights[0] + bias, 0) @ weights[1]
    np.testing.assert_allclose(model(x).numpy(), want, rtol=1e-5, atol=1e-6)
    weights[0][:] = 0
    np.testing.assert_allclose(model(x).numpy(), want, rtol=1e-5, atol=1e-6)
    assert LoraModel.from_pretrained(weights, None, CONFIG).layers["2"].bias is None


def test_from_pretrained_lists_every_fault():
    f = np.float32
    weights = [np.ones((6, 5), f), np.ones((4, 3), f), np.ones(3, f), np.ones((3, 2)), np.ones((2, 2), int)]
    with pytest.raises(ConfigError) as caught:
        LoraModel.from_pretrained(weights, [np.ones(6, f), np.ones(3, int), None, np.ones(2)], CONFIG)
    got = str(caught.value)
    for said in (
        "5 weights and 4 biases; give None for a layer without bias",
        "weight 1 (4, 3) takes 4 inputs, weight 0 (6, 5) has 5 outputs",
        "weight 2 must be a matrix (d, k), found shape (3,)",
        "weight 3 is float64, weight 0 is float32; convert one with astype",
        "weight 4 must be float32 or float64, found int64",
        "bias 0 must have shape (5,), found (6,)",
        "bias 1 must have its weight's dtype float32, found int64",
    ):
        assert said in got
    with pytest.raises(ConfigError, match="there is no weight"):
        LoraModel.from_pretrained([], None, CONFIG)


# Any tree


class Shared(Module):
    """One module at two places, and one parameter in two modules."""

    def __init__(self):
        self.first = Linear(6, 6, rng=0)
        self.again = self.first
        self.other = Linear(6, 6, rng=1)
        self.tied = Linear(6, 6, rng=2)
        self.tied.weight = self.other.weight

    def forward(self, x):
        return self.tied(self.other(self.again(self.first(x))))


def test_adapt_keeps_the_names_of_the_tree(x):
    base = Sequential(Linear(6, 6, rng=0), Sequential(Linear(6, 6, rng=1), ReLU()), LayerNorm(6))
    want = base(x).numpy()
    model = LoraModel.adapt(base, CONFIG)
    assert list(model.layers) == ["0", "1.0"]
    assert set(model.base_parameters()) == {"0.weight", "0.bias", "1.0.weight", "1.0.bias", "2.weight", "2.bias"}
    assert set(model.state()) == {"0.lora_A", "0.lora_B", "1.0.lora_A", "1.0.lora_B"}
    np.testing.assert_allclose(model(x).numpy(), want, rtol=1e-6)  # an adapter starts without effect


def test_a_single_layer_is_a_tree(x):
    layer = Linear(6, 4, rng=0)
    model = moved(LoraModel.adapt(layer, CONFIG))
    assert list(model.layers) == ["root"]
    assert set(model.state()) == {"root.lora_A", "root.lora_B"}
    adapted = model(x).numpy()
    assert not np.allclose(adapted, layer(x).numpy())
    got = model.merge_and_unload()
    assert got is layer
    np.testing.assert_allclose(layer(x).numpy(), adapted, rtol=1e-5, atol=1e-6)


def test_a_child_may_be_called_root(x):
    class Tree(Module):
        def __init__(self):
            self.root = Linear(6, 4, rng=0)

        def forward(self, x):
            return self.root(x)

    model = moved(LoraModel.adapt(Tree(), CONFIG))
    assert isinstance(model.base.root, LoraLayer)
    assert not np.allclose(model(x).numpy(), model.unload()(x).numpy())


@pytest.mark.parametrize(
    ("make", "layers"),
    [
        (lambda: TransformerEncoderLayer(6, 2, 12, rng=0), {"attention.qkv", "attention.out", "feed_forward.up", "feed_forward.down"}),
        (lambda: Transformer(6, 2, 8, layers=1, rng=0), None),
    ],
)
def test_transformers(make, layers):
    x = np.random.default_rng(0).standard_normal((2, 4, 6)).astype(np.float32)
    base = make().eval()
    inputs = (x,) if layers else (x, x[:, ::-1].copy())
    want = base(*inputs).numpy()
    model = moved(LoraModel.adapt(base, LoraConfig(2)).eval())
    if layers:
        assert set(model.layers) == layers
    else:
        assert {"encoder.0.attention.qkv", "decoder.0.cross_attention.q", "decoder.0.cross_attention.kv"} <= set(model.layers)
    adapted = model(*inputs)
    assert not np.allclose(adapted.numpy(), want)
    (adapted * adapted).mean().backward()
    assert all(p.grad is not None for p in model.trainable())
    with model.disabled():
        assert np.array_equal(model(*inputs).numpy(), want)
    model.merge()
    np.testing.assert_allclose(model(*inputs).numpy(), adapted.numpy(), rtol=1e-4, atol=1e-5)
    model.unmerge()
    assert np.array_equal(model.unload()(*inputs).numpy(), want)


def test_one_block_of_a_fused_projection_leaves_the_others_alone():
    x = np.random.default_rng(0).standard_normal((2, 4, 6)).astype(np.float32)
    model = LoraModel.adapt(TransformerEncoderLayer(6, 2, 12, rng=0).eval(), LoraConfig(2, targets=["qkv.v"])).eval()
    qkv = model.layers["attention.qkv"]
    before = qkv(x).numpy()
    moved(model)
    got = qkv(x).numpy()
    assert np.array_equal(got[..., :12], before[..., :12])
    assert not np.allclose(got[..., 12:], before[..., 12:])
    assert set(model.state()) == {"attention.qkv.v.lora_A", "attention.qkv.v.lora_B"}


@pytest.mark.parametrize("frozen", [True, False])
def test_dora_follows_a_base_that_is_replaced(frozen):
    x = np.random.default_rng(0).standard_normal((2, 4, 6)).astype(np.float32)
    model = moved(LoraModel.adapt(TransformerEncoderLayer(6, 2, 12, rng=0).eval(), LoraConfig(2, method="dora", targets=["qkv", "up"])))
    fresh = copy.deepcopy(model)
    if not frozen:
        model.unfreeze_base()
    model(x)
    for each in (model, fresh):
        for layer in each.layers.values():
            layer.weight.assign(2 * layer.weight.numpy())
    np.testing.assert_allclose(model(x).numpy(), fresh(x).numpy(), rtol=1e-4, atol=1e-5)


def test_an_embedding_a_convolution_and_a_linear_layer_in_one_model():
    class Net(Module):
        def __init__(self):
            self.embed, self.conv, self.head = Embedding(7, 4, rng=0), Conv2d(4, 4, 3, padding=1, rng=1), Linear(4, 3, rng=2)

        def forward(self, tokens):
            return self.head(self.conv(self.embed(tokens)))

    tokens = np.arange(12).reshape(1, 3, 4) % 7
    for method in default_registry().methods:
        model = moved(LoraModel.adapt(Net(), LoraConfig(2, targets="*", method=method)))
        assert set(model.layers) == {"embed", "conv", "head"}
        adapted = model(tokens)
        adapted.sum().backward()
        assert all(p.grad is not None for p in model.trainable())
        model.merge()
        np.testing.assert_allclose(model(tokens).numpy(), adapted.numpy(), rtol=1e-4, atol=1e-5)


def test_a_module_at_two_places_has_one_adapter(x):
    base = Shared()
    model = moved(LoraModel.adapt(base, LoraConfig(2, targets=["first", "other"])))
    assert list(model.layers) == ["first", "other"]
    assert base.first is base.again
    assert len(model.trainable()) == 4
    model = moved(LoraModel.adapt(model.unload(), LoraConfig(2, targets=["first"])))
    adapted, bits = model(x).numpy(), model.base_state()
    folded = model.merged_state()
    assert np.array_equal(folded["first.weight"], folded["again.weight"])
    model.merge()
    np.testing.assert_allclose(model(x).numpy(), adapted, rtol=1e-4, atol=1e-5)
    model.unmerge()
    assert all(np.array_equal(got, bits[name]) for name, got in model.base_state().items())
    assert model.unload().again is base.first


def test_a_weight_that_serves_two_modules_is_not_merged_into(x):
    model = moved(LoraModel.adapt(Shared(), LoraConfig(2, targets=["other"])))
    adapted, before = model(x).numpy(), model.base_state()
    with pytest.raises(StateError, match=r"(?s)serves two modules.*merged_state\(\).*'other' shares it with 'tied'"):
        model.merge()
    folded = model.merged_state()
    assert np.array_equal(folded["tied.weight"], before["tied.weight"])
    parted = Shared()
    parted.tied = Linear(6, 6, rng=0)
    parted.load_state_dict(folded)
    np.testing.assert_allclose(parted(x).numpy(), adapted, rtol=1e-4, atol=1e-5)


def test_tied_parameters_train_once():
    model = LoraModel.adapt(Shared(), CONFIG)
    model.unfreeze_base()
    found = [id(p) for p in model.trainable()]
    assert len(found) == len(set(found))


def test_adapters_are_not_put_into_adapters(model):
    with pytest.raises(StateError, match=r"has adapters in it already; add to its LoraModel with add_adapter\(\)"):
        LoraModel.adapt(model.base, CONFIG)
    with pytest.raises(StateError, match="has adapters in it already"):
        LoraModel.adapt(Sequential(model), CONFIG)


# Frozen, and switched


def test_the_base_is_frozen_until_it_is_not(model, x):
    assert not any(p.requires_grad for p in model.base_parameters().values())
    model(x).sum().backward()
    assert all(p.grad is None for p in model.base_parameters().values())
    lora = model.trainable()
    model.unfreeze_base()
    assert len(model.trainable()) == len(lora) + 4
    model(x).sum().backward()
    assert all(p.grad is not None for p in model.base_parameters().values())
    model.freeze_base()
    assert [id(p) for p in model.trainable()] == [id(p) for p in lora]


def test_an_unfrozen_base_gives_the_same_output(model, x):
    moved(model)
    want = model(x).numpy()
    model.unfreeze_base()
    np.testing.assert_allclose(model(x).numpy(), want, rtol=1e-5, atol=1e-6)


def test_training_adapters_does_not_move_a_frozen_batch_norm(x):
    model = LoraModel.adapt(Sequential(Linear(6, 5, rng=0), BatchNorm(5)), CONFIG)
    before = model.fingerprint()
    model.train()(x)
    assert model.fingerprint() == before
    model.unfreeze_base()
    model(x)
    assert model.fingerprint() != before


def test_switched_off_is_the_base_to_the_last_bit(model, x):
    base = copy.deepcopy(model).unload()
    moved(model)
    want = base(x).numpy()
    assert not np.allclose(model(x).numpy(), want)
    adapted = model(x).numpy()
    model.disable()
    assert np.array_equal(model(x).numpy(), want)
    model.enable()
    assert np.array_equal(model(x).numpy(), adapted)
    with model.disabled():
        assert np.array_equal(model(x).numpy(), want)
        with model.disabled():
            pass
        assert np.array_equal(model(x).numpy(), want)
    assert np.array_equal(model(x).numpy(), adapted)
    with pytest.raises(ZeroDivisionError), model.disabled():
        1 / 0  # noqa: B018
    assert np.array_equal(model(x).numpy(), adapted)
    model.set_active([])
    assert np.array_equal(model(x).numpy(), want)


def test_an_adapter_added_while_switched_off_stays_off(x):
    model = LoraModel.adapt(MLP([6, 5, 4], rng=0), LoraConfig(2, targets=["0"]))
    with model.disabled():
        want = model(x).numpy()
        model.add_adapter("second", LoraConfig(2, targets=["2"]))
        model.set_active(["default", "second"])
        moved(model)
        assert np.array_equal(model(x).numpy(), want)
    assert not np.allclose(model(x).numpy(), want)


# Several adapters


def test_active_adapters_add_up(x):
    model = LoraModel.adapt(Linear(6, 4, rng=0), CONFIG)
    model.add_adapter("other", LoraConfig(3, method="dora", seed=1))
    assert model.active == {"default": 1.0}  # a new one does not act yet
    moved(model)
    outputs = {}
    for active in ((), "default", "other", ("default", "other")):
        model.set_active(active)
        outputs[active] = model(x).numpy()
    deltas = {name: outputs[name] - outputs[()] for name in ("default", "other")}
    np.testing.assert_allclose(outputs["default", "other"], outputs[()] + deltas["default"] + deltas["other"], rtol=1e-4, atol=1e-5)
    model.set_active({"default": -0.5, "other": 2})
    assert model.active == {"default": -0.5, "other": 2.0}
    np.testing.assert_allclose(model(x).numpy(), outputs[()] - 0.5 * deltas["default"] + 2 * deltas["other"], rtol=1e-4, atol=1e-5)


def test_one_weighted_adapter(x):
    model = moved(LoraModel.adapt(Linear(6, 4, rng=0), CONFIG))
    want = model(x).numpy()
    model.set_active({"default": 0.25})
    with model.disabled():
        base = model(x).numpy()
    np.testing.assert_allclose(model(x).numpy(), base + 0.25 * (want - base), rtol=1e-4, atol=1e-6)


def test_adapters_on_different_layers(x):
    model = LoraModel.adapt(MLP([6, 5, 4], rng=0), LoraConfig(2, targets=["0"]))
    model.add_adapter("second", LoraConfig(2, targets=["2"]))
    assert set(model.layers) == {"0", "2"}
    assert set(model.state("second")) == {"2.lora_A", "2.lora_B"}
    model.set_active("second")
    assert {name for name, layer in model.layers.items() if layer.active} == {"2"}
    assert len(model.trainable()) == 2
    model.remove_adapter("default")
    assert set(model.layers) == {"2"}
    assert isinstance(model.base.get("0"), Linear)
    assert list(model.adapters) == ["second"]


def test_names_of_adapters(model):
    for call in (lambda: model.set_active("x"), lambda: model.remove_adapter("x"), lambda: model.state("x"), lambda: model.merge("x")):
        with pytest.raises(UnknownNameError, match=r"There is no adapter 'x'\. Adapters: 'default'"):
            call()
    with pytest.raises(StateError, match="There is an adapter 'default' already"):
        model.add_adapter("default", CONFIG)
    with pytest.raises(ConfigError, match="An adapter's name"):
        model.add_adapter("a.b", CONFIG)


class Failing(Lora):
    name = "failing"

    def initial(self, weight, rank, rng, options):
        if weight.shape == (5, 4):
            raise ZeroDivisionError
        return super().initial(weight, rank, rng, options)


def test_an_adapter_that_cannot_be_made_leaves_no_trace(monkeypatch):
    monkeypatch.setitem(default_registry().methods, "failing", Failing())
    base = MLP([6, 5, 4], rng=0)
    before = repr(base)
    with pytest.raises(ZeroDivisionError):
        LoraModel.adapt(base, LoraConfig(2, method="failing"))
    assert repr(base) == before
    LoraModel.adapt(base, CONFIG)


def test_the_registry_decides_what_can_have_an_adapter():
    registry = build_registry(without=["conv"])
    with pytest.raises(ConfigError, match=r"'0' is a Conv2d, for which no layer type is registered"):
        LoraModel.adapt(Sequential(Conv2d(1, 2, 3, rng=0)), LoraConfig(1, targets="0"), registry=registry)


# Seeds


def test_layers_of_one_shape_differ_and_seeds_repeat():
    def draw(seed):
        return LoraModel.from_sizes([6, 6, 6, 6], LoraConfig(2, seed=seed)).state()

    got = draw(0)
    arrays = [array for name, array in got.items() if name.endswith("lora_A")]
    assert not any(np.isclose(a, b).any() for i, a in enumerate(arrays) for b in arrays[:i])
    again, other = draw(0), draw(1)
    assert all(np.array_equal(got[name], again[name]) for name in got)
    assert not np.isclose(got["0.lora_A"], other["0.lora_A"]).any()


def test_a_layers_draw_does_not_depend_on_the_other_layers():
    config = LoraConfig(2, targets=["2"])
    alone = LoraModel.from_sizes([6, 6, 6], config).state()
    beside = LoraModel.from_sizes([6, 6, 6], config.replace(targets=["all-linear"])).state()
    assert np.array_equal(alone["2.lora_A"], beside["2.lora_A"])


def test_weights_and_adapters_do_not_share_their_draw():
    model = LoraModel.from_sizes([6, 6], LoraConfig(6, seed=0), rng=0)
    ratio = model.layers["0"].weight.numpy() / model.state()["0.lora_A"]
    assert ratio.std() > 0.1


# Biases


def net():
    return Sequential(Linear(6, 5, rng=0), LayerNorm(5), Linear(5, 4, rng=1), Linear(4, 4, bias=False, rng=2))


@pytest.mark.parametrize(("bias", "trained"), [("none", set()), ("lora_only", {"0.bias"}), ("all", {"0.bias", "1.bias", "2.bias"})])
def test_biases_train_exactly_when_asked(bias, trained, x):
    model = LoraModel.adapt(net(), LoraConfig(2, bias=bias, targets=["0", "3"]))
    assert {name for name in model.state() if name.endswith("bias")} == trained
    assert len(model.trainable()) == 4 + len(trained)
    model(x).sum().backward()
    assert all(p.grad is not None for p in model.trainable())
    assert all(p.grad is None for p in model.base_parameters().values())


def test_a_trained_bias_is_added_switched_and_merged(x):
    model = LoraModel.adapt(net(), LoraConfig(2, bias="all", targets=["0"]))
    with model.disabled():
        want = model(x).numpy()
    np.testing.assert_allclose(model(x).numpy(), want, rtol=1e-6)
    state = model.state()
    state["1.bias"] = np.arange(5, dtype=np.float32)
    model.load_state(state)
    shifted = copy.deepcopy(model.base.get("1").base)
    shifted.unfreeze()
    shifted.bias.assign(shifted.bias.numpy() + state["1.bias"])
    adapted = model(x).numpy()
    rows = model.base.get("2")(shifted(model.base.get("0")(x)))
    np.testing.assert_allclose(adapted, model.base.get("3")(rows).numpy(), rtol=1e-5, atol=1e-6)
    with model.disabled():
        assert np.array_equal(model(x).numpy(), want)
    model.set_active({"default": 0.5})
    half = model(x).numpy()
    model.merge()
    np.testing.assert_allclose(model(x).numpy(), half, rtol=1e-5, atol=1e-6)
    model.unmerge()
    with model.disabled():
        assert np.array_equal(model(x).numpy(), want)


def test_biases_that_are_not_there_are_refused():
    with pytest.raises(ConfigError, match="finds no bias to train"):
        LoraModel.from_sizes([6, 4], LoraConfig(2, bias="lora_only"), bias=False)

    class Strange(Module):
        def __init__(self):
            self.fc = Linear(4, 4, rng=0)
            self.bias = Linear(4, 1, rng=0).bias

    with pytest.raises(ConfigError, match="does not say how it uses it"):
        LoraModel.adapt(Strange(), LoraConfig(2, bias="all"))


# Copies, modes, and taking out


def test_copies_stand_alone(model, x):
    moved(model)
    model.add_adapter("other", LoraConfig(2, method="dora"))
    model.merge()
    want = model(x).numpy()
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert np.array_equal(other(x).numpy(), want)
        assert other.merged == {"default": 1.0}
        other.unmerge()
        moved(other, seed=9)
        assert not np.allclose(other(x).numpy(), want)
        assert np.array_equal(model(x).numpy(), want)
        assert other.fingerprint() == model.fingerprint()
        assert {id(p) for p in other.trainable()}.isdisjoint(id(p) for p in model.parameters())


def test_modes_reach_new_adapters():
    model = LoraModel.from_sizes([6, 4, 3], CONFIG.replace(targets=["0"])).eval()
    model.add_adapter("other", LoraConfig(2, dropout=0.5, targets="0"))
    model.add_adapter("root", LoraConfig(2, dropout=0.5, targets="2"))
    assert not any(model.layers[name].adapter(adapter).blocks()[""].training for name, adapter in (("0", "other"), ("2", "root")))
    model.train()
    assert model.layers["0"].adapter("other").blocks()[""].training


def test_unload_gives_the_base_back(model, x):
    with model.disabled():
        want = model(x).numpy()
    moved(model)
    base = model.unload()
    assert np.array_equal(base(x).numpy(), want)
    assert not any(isinstance(module, LoraLayer) for _, module in base.modules())
    assert model.layers == model.adapters == {}
    assert LoraModel.adapt(base, CONFIG).layers  # and it can have adapters again


def test_gradients_reach_the_input(model, x):
    moved(model)
    given = Tensor(x, requires_grad=True)
    model(given).sum().backward()
    step = np.zeros_like(x)
    step[1, 2] = 1e-2
    want = (model(x + step).numpy().sum(dtype=float) - model(x - step).numpy().sum(dtype=float)) / 2e-2
    assert given.grad[1, 2] == pytest.approx(want, rel=1e-2, abs=1e-3)


def test_what_is_no_module_and_what_is_no_config():
    with pytest.raises(DtypeError, match="found int"):
        LoraModel.adapt(3, LoraConfig())
    with pytest.raises(DtypeError, match="from_dict"):
        LoraModel.adapt(MLP([4, 3], rng=0), {"rank": 2})
