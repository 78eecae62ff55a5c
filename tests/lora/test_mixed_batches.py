"""Rows with adapters of their own compute, forward and backward, what each adapter's rows compute alone."""

import numpy as np
import pytest
from layer_examples import LAYERS

from loratk import LoraConfig, LoraModel, Tensor, no_grad
from loratk.errors import ShapeError
from loratk.nn import GRU, MLP, Linear, Module, Sequential, TransformerEncoderLayer
from loratk.plugins import default_registry

NAMES = ["a", "b", None, "c", "a", "b", "a", None, "c"]
METHODS = sorted(default_registry().methods)


def drawn(model, seed=1):
    """The model with all trained parameters of its adapters drawn anew."""
    rng = np.random.default_rng(seed)
    for name in model.adapters:
        for layer in model.layers.values():
            if name in layer.names():
                for key, parameter in layer.adapter(name).tensors().items():
                    if parameter.requires_grad and parameter.dtype.kind == "f":
                        values = rng.standard_normal(parameter.shape).astype(parameter.dtype)
                        parameter.assign(np.abs(values) if key.endswith("magnitude") else values)
    return model


def rows_of(x, rows):
    return Tensor(np.ascontiguousarray(np.asarray(x)[rows]), requires_grad=np.asarray(x).dtype.kind == "f")


def gradients(model):
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def check(model, x, names, *, rtol=1e-9, outputs=lambda y: y):
    """Mixed against each choice alone on its rows: outputs, gradients of every adapter, and of the input."""
    x = np.asarray(x)
    model.zero_grad()
    mixed_x = rows_of(x, slice(None))
    y = outputs(model(mixed_x, adapter=names))
    g = np.random.default_rng(9).standard_normal(y.shape).astype(y.dtype)
    if y.requires_grad:
        y.backward(g)
    got = gradients(model)
    model.zero_grad()
    for choice in {repr(name): name for name in names}.values():
        mine = [i for i, name in enumerate(names) if name == choice]
        part = rows_of(x, mine)
        alone = outputs(model(part, adapter=choice))
        np.testing.assert_allclose(y.numpy()[mine], alone.numpy(), rtol=rtol, atol=rtol)
        if alone.requires_grad:
            alone.backward(g[mine])
        if part.requires_grad:
            np.testing.assert_allclose(mixed_x.grad[mine], part.grad, rtol=rtol, atol=rtol)
    want = gradients(model)
    assert got.keys() == want.keys()
    for name, grad in want.items():
        np.testing.assert_allclose(got[name], grad, rtol=rtol, atol=rtol, err_msg=name)
    return got


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", LAYERS)
def test_every_method_on_every_layer_type(kind, method):
    make, inputs = LAYERS[kind]
    x = inputs(np.float64)
    x = np.concatenate([x] * 9)[:9] if x.dtype.kind == "i" else np.random.default_rng(3).standard_normal((9, *x.shape[1:]))
    model = LoraModel(make(np.float64))
    for name, rank in (("a", 1), ("b", 2), ("c", 2)):
        model.add_adapter(name, LoraConfig(rank=rank, alpha=3.0, targets="*", method=method if name != "c" else "lora", seed=rank))
    check(drawn(model), x, NAMES)


@pytest.mark.parametrize("bias", ["lora_only", "all"])
def test_ranks_scales_methods_and_biases_side_by_side(bias):
    model = LoraModel(MLP([6, 20, 70, 5], rng=0, dtype=np.float64))
    model.add_adapter("a", LoraConfig(rank=4, alpha=1.0, bias=bias))
    model.add_adapter("b", LoraConfig(rank=5, method="dora", targets=["0", "4"]))
    model.add_adapter("c", LoraConfig(rank=2, targets="2", rslora=True, bias=bias))
    grads = check(drawn(model), np.random.default_rng(2).standard_normal((9, 6)), NAMES)
    assert sum("bias" in name for name in grads) == (4 if bias == "lora_only" else 6)


def test_weights_and_sums_of_adapters_in_single_rows():
    model = LoraModel(MLP([6, 20, 5], rng=0, dtype=np.float64))
    for name, method in (("a", "lora"), ("b", "dora"), ("c", "lora")):
        model.add_adapter(name, LoraConfig(rank=3, method=method))
    names = [{"a": 0.5}, {"a": 0.5, "c": 2.0}, "b", {"b": 0.5}, None, {}, {"a": 0.5}, "a", {"c": -1.0}]
    y = drawn(model)(x := np.random.default_rng(2).standard_normal((9, 6)), adapter=names).numpy()
    for row, choice in enumerate(names):
        np.testing.assert_allclose(y[row], model(x[row : row + 1], adapter=choice or None).numpy()[0], rtol=1e-9, atol=1e-12)


def test_a_norm_whose_bias_alone_trains():
    model = LoraModel(TransformerEncoderLayer(8, heads=2, hidden=12, rng=0, dtype=np.float64))
    model.add_adapter("a", LoraConfig(rank=2, bias="all"))
    model.add_adapter("b", LoraConfig(rank=3))
    grads = check(drawn(model), np.random.default_rng(2).standard_normal((5, 3, 8)), ["a", "b", None, "a", "b"])
    assert any("norm" in name and name.endswith("bias") for name in grads)


@pytest.mark.parametrize("net", ["encoder", "gru"])
def test_sequences_keep_their_rows(net):
    base = {
        "encoder": lambda: TransformerEncoderLayer(8, heads=2, hidden=12, rng=0, dtype=np.float64),
        "gru": lambda: GRU(8, 6, rng=0, dtype=np.float64),
    }[net]()
    model = LoraModel(base)
    for name, rank in (("a", 1), ("b", 2), ("c", 3)):
        model.add_adapter(name, LoraConfig(rank=rank, targets="*"))
    check(drawn(model), np.random.default_rng(2).standard_normal((9, 4, 8)), NAMES, outputs=lambda y: y[0] if isinstance(y, tuple) else y)


def test_an_init_that_moves_the_base():
    model = LoraModel(MLP([6, 20, 5], rng=0, dtype=np.float64))
    model.add_adapter("a", LoraConfig(rank=3, init="pissa"))
    model.add_adapter("b", LoraConfig(rank=2))
    model.add_adapter("c", LoraConfig(rank=2, init="pissa"))
    check(drawn(model), np.random.default_rng(2).standard_normal((9, 6)), NAMES)


@pytest.mark.parametrize(
    "config",
    [
        {"dropout": 0.4},
        {"rank_dropout": 0.4},
        {"module_dropout": 0.5},
        {"dropout": 0.3, "method": "dora"},
        {"dropout": 0.3, "init": "pissa"},
    ],
)
def test_dropout_draws_for_each_adapter_what_it_draws_alone(config):
    def make():
        model = LoraModel(MLP([6, 20, 5], rng=0, dtype=np.float64))
        for name, rank in (("a", 2), ("b", 3), ("c", 1)):
            model.add_adapter(name, LoraConfig(rank=rank, seed=rank, **(config if name != "c" else {})))
        return drawn(model).train()

    x = np.random.default_rng(2).standard_normal((9, 6))
    mixed, alone = make(), make()
    y = mixed(x, adapter=NAMES).numpy()
    for choice in ("a", "b", None, "c"):
        rows = [i for i, name in enumerate(NAMES) if name == choice]
        np.testing.assert_allclose(y[rows], alone(x[rows], adapter=choice).numpy(), rtol=1e-9, atol=1e-12)


def test_a_base_that_trains_too():
    model = LoraModel(MLP([6, 9, 5], rng=0, dtype=np.float64))
    for name, config in (("a", LoraConfig(rank=2)), ("b", LoraConfig(rank=3, method="dora")), ("c", LoraConfig(rank=1, init="pissa"))):
        model.add_adapter(name, config)
    drawn(model).unfreeze_base()
    x, g = (np.random.default_rng(seed).standard_normal(shape) for seed, shape in ((2, (9, 6)), (3, (9, 5))))
    model(x, adapter=NAMES).backward(g)
    got = gradients(model)
    model.zero_grad()
    for row, name in enumerate(NAMES):
        model(x[row : row + 1], adapter=name).backward(g[row : row + 1])
    want = gradients(model)
    assert got.keys() == want.keys()
    for name, grad in want.items():
        np.testing.assert_allclose(got[name], grad, rtol=1e-9, atol=1e-9, err_msg=name)


def test_adapters_without_rows_have_no_gradient():
    model = LoraModel(Linear(4, 3, rng=0))
    for name in "abc":
        model.add_adapter(name, LoraConfig(rank=1))
    drawn(model)(np.ones((2, 4), np.float32), adapter=["a", "b"]).sum().backward()
    assert {name.split(".")[2] for name in gradients(model)} == {"a", "b"}


def test_a_row_does_not_depend_on_its_neighbours():
    model = LoraModel(MLP([70, 130, 33], rng=0))
    for at, name in enumerate("abcd"):
        model.add_adapter(name, LoraConfig(rank=1 + 7 * at, method="dora" if name == "c" else "lora"))
    drawn(model).freeze()
    x = np.random.default_rng(4).standard_normal((40, 70)).astype(np.float32)
    rng = np.random.default_rng(5)
    with no_grad():
        names = [None if at == 4 else "abcd"[at] for at in rng.integers(0, 5, 40)]
        y = model(x, adapter=names).numpy()
        for _ in range(3):
            others = [name if row % 2 else "abcd"[at] for row, (name, at) in enumerate(zip(names, rng.integers(0, 4, 40), strict=True))]
            np.testing.assert_array_equal(model(x, adapter=others).numpy()[1::2], y[1::2])


@pytest.mark.parametrize("freeze", [True, False])
def test_new_values_of_dora_show_whether_frozen_or_not(freeze):
    model = LoraModel(Linear(4, 3, rng=0, dtype=np.float64))
    for name in "ab":
        model.add_adapter(name, LoraConfig(rank=2, method="dora"))
    drawn(model)
    if freeze:
        model.freeze()
    x = np.random.default_rng(0).standard_normal((2, 4))
    for scale in (1.0, 2.0, 0.5):
        for name in "ab":
            model.load_state({key: scale * value for key, value in model.state(name).items()}, name)
        want = np.concatenate([model(x[i : i + 1], adapter="ab"[i]).numpy() for i in range(2)])
        np.testing.assert_allclose(model(x, adapter=["a", "b"]).numpy(), want, rtol=1e-12)


def test_values_changed_in_place_show_as_an_optimiser_changes_them():
    model = LoraModel(Linear(4, 3, rng=0, dtype=np.float64))
    for name, method in (("a", "dora"), ("b", "lora")):
        model.add_adapter(name, LoraConfig(rank=2, method=method))
    x, names = np.random.default_rng(0).standard_normal((2, 4)), ["a", "b"]
    with no_grad():
        before = drawn(model)(x, adapter=names).numpy()
        for parameter in model.parameters():
            if parameter.requires_grad:
                np.multiply(parameter.data, 1.5, out=parameter.data)  # no new array, so nobody is told
        want = np.concatenate([model(x[i : i + 1], adapter=names[i]).numpy() for i in range(2)])
        got = model(x, adapter=names).numpy()
    np.testing.assert_allclose(got, want, rtol=1e-12)
    assert not np.allclose(got, before)


def test_rows_that_are_not_on_axis_0_are_refused_with_the_layers_name():
    class TimeFirst(Module):
        def __init__(self):
            self.inner = Sequential(Linear(4, 3, rng=0))

        def forward(self, x):
            return self.inner(x.transpose(1, 0, 2))

    model = LoraModel(TimeFirst())
    for name in "ab":
        model.add_adapter(name, LoraConfig(rank=1))
    x = Tensor(np.ones((2, 5, 4), np.float32))
    with pytest.raises(ShapeError, match=r"2 rows were given adapters; layer 'inner.0' must have them on axis 0, found shape \(5, 2, 4\)"):
        model(x, adapter=["a", "b"])
    with pytest.raises(ShapeError, match="several adapters for all rows are a dict of weights"):
        LoraModel.adapt(Linear(4, 3, rng=0), LoraConfig(rank=1), adapter="a")(np.ones((3, 4), np.float32), adapter=["a", "a"])
    np.testing.assert_array_equal(model(x, adapter="a").shape, (5, 2, 3))


@pytest.mark.parametrize("names", [[], ["a"], [None, None], ["a", "a"]])
def test_batches_that_are_hardly_mixed(names):
    model = LoraModel(MLP([4, 6, 3], rng=0, dtype=np.float64))
    model.add_adapter("a", LoraConfig(rank=2))
    x = np.random.default_rng(0).standard_normal((len(names), 4))
    want = drawn(model)(x, adapter=names[0] if names else None).numpy()
    np.testing.assert_array_equal(model(x, adapter=names).numpy(), want)
