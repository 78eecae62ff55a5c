"""One adapter on one matrix, and the linear layer that comes with one."""

import copy

import numpy as np
import pytest

from loratk import LoraAdapter, LoraConfig, LoraLinear, Tensor, get_backend
from loratk.errors import ConfigError, DtypeError, ShapeError, StateError, UnknownNameError
from loratk.lora.adapter import layer_generator
from loratk.nn import Linear
from loratk.testing.layer_type import randomize


@pytest.fixture
def x():
    return np.random.default_rng(0).standard_normal((3, 10)).astype(np.float32)


# LoraAdapter


def test_what_it_is_made_of():
    config = LoraConfig(4, 8)
    adapter = LoraAdapter.blank(20, 10, config)
    assert adapter.config is config
    assert (adapter.rank, adapter.alpha, adapter.scaling) == (4, 8.0, 2.0)
    assert {name: p.shape for name, p in adapter.tensors().items()} == {"lora_A": (20, 4), "lora_B": (4, 10)}
    assert not adapter.lora_B.numpy().any()
    assert adapter.lora_A.numpy().any()
    assert "rank=4" in repr(adapter)


def test_counts():
    adapter = LoraAdapter.blank(100, 50, LoraConfig.default(8))
    assert adapter.count() == 8 * 100 + 8 * 50
    assert adapter.reduction() == 1 - 1200 / 5000


def test_A_is_drawn_as_announced():
    weight = np.zeros((4000, 50), np.float64)
    got = LoraAdapter(weight, LoraConfig(32)).lora_A.numpy()
    assert abs(got).max() <= 4000**-0.5
    assert got.std() == pytest.approx(4000**-0.5 / 3**0.5, rel=0.02)
    got = LoraAdapter(weight, LoraConfig(32, init="gaussian")).lora_A.numpy()
    assert got.std() == pytest.approx(1 / 32, rel=0.02)


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_it_starts_without_effect(method, x):
    weight = np.random.default_rng(1).standard_normal((10, 5))
    adapter = LoraAdapter(weight, LoraConfig(2, method=method))
    assert abs(adapter.delta(weight)).max() < 1e-14
    if method == "lora":
        assert not adapter(x.astype(float)).numpy().any()


def test_dora_leaves_a_column_of_zeros_alone(x):
    weight = np.random.default_rng(1).standard_normal((10, 5)).astype(np.float32)
    weight[:, 2] = 0
    layer = LoraLinear.from_arrays(weight, None, LoraConfig(2, method="dora"))
    got = layer(x)
    got.sum().backward()
    np.testing.assert_allclose(got.numpy(), x @ weight, rtol=1e-4, atol=1e-5)
    assert np.isfinite(layer.merged_arrays()["weight"]).all()
    assert all(np.isfinite(p.grad).all() for p in layer.adapters.parameters())


def test_update_is_its_formula(x):
    adapter = LoraAdapter.blank(10, 5, LoraConfig(2, 3))
    randomize(adapter, 0)
    a, b = adapter.lora_A.numpy(), adapter.lora_B.numpy()
    np.testing.assert_allclose(adapter(x).numpy(), 1.5 * x @ a @ b, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(adapter.delta(np.zeros((10, 5), np.float32)), 1.5 * a @ b, rtol=1e-5, atol=1e-6)


def test_the_names_of_layers_make_them_differ_and_the_seed_makes_them_equal():
    def draw(name="a", seed=0):
        return LoraAdapter.blank(6, 6, LoraConfig(2, seed=seed), name=name).lora_A.numpy()

    assert np.array_equal(draw(), draw())
    assert not np.isclose(draw(), draw(name="b")).any()
    assert not np.isclose(draw(), draw(seed=1)).any()


def test_draws_do_not_depend_on_the_platform_or_the_run():
    got = layer_generator(7, "encoder.0.fc", "initial").integers(0, 1000, 4).tolist()
    assert got == [556, 842, 829, 527]
    assert got != layer_generator(7, "encoder.0.fc", "dropout").integers(0, 1000, 4).tolist()


@pytest.mark.parametrize("shape", [(3,), (2, 3, 4), (0, 4), ()])
def test_only_matrices_have_adapters(shape):
    with pytest.raises(ShapeError, match=r"a weight \(d, k\) without empty axes, found shape"):
        LoraAdapter(np.zeros(shape, np.float32), LoraConfig(1))


def test_a_rank_that_is_too_high_is_refused_unless_asked_for():
    with pytest.raises(ConfigError, match="Rank 4 is above"):
        LoraAdapter.blank(3, 5, LoraConfig(4))
    assert LoraAdapter(np.zeros((3, 5), np.float32), LoraConfig(4), check_rank=False).lora_A.shape == (3, 4)


def test_gradients_can_be_forgotten(x):
    adapter = LoraAdapter.blank(10, 5, LoraConfig(2))
    adapter(x).sum().backward()
    assert all(p.grad is not None for p in adapter.tensors().values())
    adapter.zero_grad()
    assert all(p.grad is None for p in adapter.tensors().values())


# Dropout


def test_dropout_works_in_training_and_not_in_evaluation():
    x = np.ones((4000, 10), np.float32)
    layer = LoraLinear(10, 10, LoraConfig(10, 10, dropout=0.25), rng=0, bias=False)
    layer.adapter("default").blocks()[""].lora_A.assign(np.eye(10, dtype=np.float32))
    layer.adapter("default").blocks()[""].lora_B.assign(np.eye(10, dtype=np.float32))
    base = layer.base(x).numpy()
    got = layer(x).numpy() - base
    assert np.allclose(np.unique(got.round(4)), [0, 4 / 3], atol=1e-3)  # what is kept is divided by 1 - p
    assert (got < 0.5).mean() == pytest.approx(0.25, abs=0.01)
    assert not np.array_equal(layer(x).numpy(), layer(x).numpy())
    layer.eval()
    assert np.array_equal(layer(x).numpy(), layer(x).numpy())
    np.testing.assert_allclose(layer(x).numpy() - base, 1, rtol=1e-5)


def test_dropout_repeats_with_the_seed(x):
    first, again, other = (LoraLinear(10, 5, LoraConfig(2, dropout=0.5, seed=seed), rng=0) for seed in (1, 1, 2))
    for layer in (first, again, other):
        layer.adapter("default").blocks()[""].lora_B.assign(np.ones((2, 5), np.float32))
    draws = [first(x).numpy() for _ in range(3)]
    assert all(np.array_equal(again(x).numpy(), want) for want in draws)
    assert not np.array_equal(other(x).numpy(), draws[0])


# LoraLinear


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(10,), (3, 10), (2, 4, 10), (0, 10), (1, 1, 1, 10)])
def test_linear_is_its_formula(shape, dtype):
    layer = LoraLinear(10, 5, LoraConfig(2, 6), rng=0, dtype=dtype)
    randomize(layer.adapters, 0)
    x = np.random.default_rng(0).standard_normal(shape).astype(dtype)
    part = layer.adapter("default").blocks()[""]
    want = x @ layer.base.weight.numpy() + 3 * (x @ part.lora_A.numpy()) @ part.lora_B.numpy() + layer.base.bias.numpy()
    got = layer(x).numpy()
    assert got.dtype == dtype
    np.testing.assert_allclose(got, want, rtol=1e-4 if dtype == np.float32 else 1e-12, atol=1e-5 if dtype == np.float32 else 1e-12)


def test_linear_copies_what_it_is_given():
    weight, bias = np.ones((4, 3), np.float32), np.ones(3, np.float32)
    layer = LoraLinear.from_arrays(weight, bias, LoraConfig(1))
    weight[:], bias[:] = 7, 7
    assert layer.base.weight.numpy().max() == layer.base.bias.numpy().max() == 1
    assert LoraLinear.from_arrays(weight, None, LoraConfig(1)).base.bias is None


@pytest.mark.parametrize(
    ("weight", "bias", "kind"),
    [
        (np.ones(4, np.float32), None, ShapeError),
        (np.ones((4, 3), np.float32), np.ones(4, np.float32), ShapeError),
        (np.ones((4, 3), np.int64), None, DtypeError),
        (np.ones((4, 3), np.float32), np.ones(3), DtypeError),
    ],
)
def test_linear_refuses_arrays_that_do_not_fit(weight, bias, kind):
    with pytest.raises(kind):
        LoraLinear.from_arrays(weight, bias, LoraConfig(1))


def test_linear_counts_what_trains():
    layer = LoraLinear(100, 50, LoraConfig.default(8), rng=0)
    assert layer.count(trainable=True) == 8 * 150
    assert layer.count() == 8 * 150 + 5000 + 50
    layer = LoraLinear(100, 50, LoraConfig.default(8, bias="lora_only"), rng=0)
    assert layer.count(trainable=True) == 8 * 150 + 50


def test_linear_without_a_bias_cannot_train_one():
    with pytest.raises(ConfigError, match="no bias that could train"):
        LoraLinear(4, 3, LoraConfig(1, bias="all"), rng=0, bias=False)


def test_linear_with_too_high_a_rank_is_refused():
    with pytest.raises(ConfigError, match="Rank 100 is above"):
        LoraLinear(50, 25, LoraConfig(100), rng=0)


def test_names_part_linear_layers_of_one_shape():
    a, b = (LoraLinear(6, 6, LoraConfig(2), rng=0, name=name).adapter("default").blocks()[""].lora_A.numpy() for name in ("a", "b"))
    assert not np.isclose(a, b).any()


def test_a_frozen_weight_gets_no_gradient_and_the_adapter_does(x):
    layer = LoraLinear(10, 5, LoraConfig(2), rng=0)
    given = Tensor(x, requires_grad=True)
    layer(given).sum().backward()
    assert layer.base.weight.grad is None
    assert layer.base.bias.grad is None
    assert given.grad is not None
    assert layer.adapter("default").blocks()[""].lora_B.grad.any()


def test_the_layer_is_seen_through():
    layer = LoraLinear(10, 5, LoraConfig(2), rng=0)
    assert layer.weight is layer.base.weight
    with pytest.raises(AttributeError, match="heads"):
        layer.heads  # noqa: B018
    assert not hasattr(layer, "_private")


def test_a_copy_stands_alone(x):
    layer = LoraLinear(10, 5, LoraConfig(2), rng=0)
    randomize(layer.adapters, 0)
    want = layer(x).numpy()
    other = copy.deepcopy(layer)
    randomize(layer.adapters, 1)
    assert np.array_equal(other(x).numpy(), want)
    assert other.base.weight.frozen


def test_backends_agree(x):
    layer = LoraLinear(10, 5, LoraConfig(2), rng=0)
    randomize(layer.adapters, 0)
    want = layer(x).numpy()
    layer.to("reference")
    assert layer.adapter("default").blocks()[""].lora_A.backend is get_backend("reference")
    np.testing.assert_allclose(layer(x).numpy(), want, rtol=1e-5, atol=1e-6)


# One layer, several adapters


def test_adapters_by_name(x):
    layer = LoraLinear(10, 5, LoraConfig(2), rng=0)
    layer.add("other", LoraConfig(3))
    assert layer.names() == ["default", "other"]
    assert layer.active == {"default": 1.0}
    layer.activate({"default": 0.5, "other": 2})
    assert layer.active == {"default": 0.5, "other": 2.0}
    layer.remove("default")
    assert layer.active == {"other": 2.0}
    with pytest.raises(UnknownNameError, match=r"no adapter 'default' on this layer\. Adapters: 'other'"):
        layer.activate(["other", "default"])
    with pytest.raises(StateError, match="an adapter 'other' on this layer already"):
        layer.add("other", LoraConfig(2))


@pytest.mark.parametrize("name", ["", "a.b", "a/b", "a b", "-a", "_a", 3, "ä"])
def test_names_that_cannot_stand_in_dotted_names(name):
    with pytest.raises(ConfigError, match="An adapter's name is made of"):
        LoraLinear(4, 4, LoraConfig(1), rng=0).add(name, LoraConfig(1))


@pytest.mark.parametrize("weight", [np.nan, np.inf, "1", None, True])
def test_weights_that_make_no_sense(weight):
    with pytest.raises(ConfigError, match="must be a finite number"):
        LoraLinear(4, 4, LoraConfig(1), rng=0).activate({"default": weight})


def test_wrapping_twice_is_refused():
    layer = LoraLinear(4, 4, LoraConfig(1), rng=0)
    with pytest.raises(StateError, match="has a LoraLayer around it already"):
        type(layer).__mro__[1](layer, layer.layer_type)
    assert isinstance(layer.base, Linear)
