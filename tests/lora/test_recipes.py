"""Recipes for optimisers: LoRA+ and LoRA-FA."""

import gc
import weakref

import numpy as np
import pytest

from loratk import LoraConfig, LoraModel, Tensor, Trainer, lora_plus, ops
from loratk.errors import ConfigError, StateError
from loratk.nn import MLP, SGD, AdamW, Conv2d, Embedding, Linear, Sequential
from loratk.testing.layer_type import randomize


def named(model, groups):
    """The names of the parameters of each group, and its learning rate."""
    names = {id(p): name for layer in model.layers for name, p in _parameters(model, layer)}
    return [([names[id(p)] for p in group["params"]], group["lr"]) for group in groups]


def _parameters(model, layer):
    return [(f"{layer}.{key}", p) for key, p in model.layers[layer].adapter("default").tensors().items()]


def make(**config):
    base = Sequential(Embedding(9, 6, rng=0), Linear(6, 5, rng=1))
    return LoraModel.adapt(base, LoraConfig(rank=2, targets="*", **config))


def test_lora_plus_lets_b_learn_faster():
    model = make(method="lora_gain", bias="lora_only")
    groups = lora_plus(model, 1e-3)
    assert named(model, groups) == [
        (["0.lora_A", "1.lora_A"], 1e-3),
        (["0.lora_B", "0.gain", "1.bias", "1.lora_B", "1.gain"], 16e-3),
    ]
    assert [(len(group.parameters), group.options["lr"]) for group in AdamW(groups).groups] == [(2, 1e-3), (5, 16e-3)]
    model = make()
    assert named(model, lora_plus(model, 0.1, ratio=2, embedding_lr=1e-6)) == [
        (["1.lora_A"], 0.1), (["1.lora_B"], 0.2), (["0.lora_A", "0.lora_B"], 1e-6),
    ]  # fmt: skip


def test_lora_plus_refuses_what_makes_no_sense():
    model = make()
    with pytest.raises(ConfigError, match="ratio must be a finite number"):
        lora_plus(model, 1e-3, ratio=-1)
    with pytest.raises(ConfigError, match="embedding_lr must be a finite number"):
        lora_plus(model, 1e-3, embedding_lr="fast")
    model.set_active([])
    with pytest.raises(StateError, match="Nothing of this model trains"):
        lora_plus(model, 1e-3)


def test_a_frozen_a_does_not_train_and_b_has_its_gradient():
    x = np.random.default_rng(0).standard_normal((40, 6))
    models = []
    for freeze in (True, False):
        model = LoraModel.adapt(MLP([6, 8, 5, 4], rng=0, dtype=np.float64), LoraConfig(rank=2, options={"freeze_A": freeze}))
        for layer in model.layers.values():
            randomize(layer.adapters, 4)
        ops.mean(model(x) ** 2).backward()
        models.append(model)
    fixed, free = models
    assert np.array_equal(fixed(x).numpy(), free(x).numpy())
    assert all(name.endswith("lora_B") for name, p in fixed._tensors("default").items() if p.requires_grad)
    for name, p in fixed._tensors("default").items():
        theirs = free._tensors("default")[name].grad
        assert p.grad is None if name.endswith("lora_A") else np.allclose(p.grad, theirs, atol=1e-14)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("freeze", [True, False])
@pytest.mark.parametrize(
    ("make", "shape"),
    [(lambda: Linear(64, 8, rng=0), (40, 64)), (lambda: Conv2d(3, 4, 3, padding=1, rng=0), (2, 9, 9, 3))],
    ids=["linear", "conv2d"],
)
def test_the_pass_keeps_no_input_of_a_layer_with_a_frozen_a(make, shape, freeze, dropout):
    config = LoraConfig(rank=2, dropout=dropout, options={"freeze_A": freeze}, targets="*")
    model = LoraModel.adapt(make(), config).train()
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    kept = weakref.ref(x)
    y = model(Tensor(x))
    del x
    gc.collect()
    assert (kept() is None) == freeze
    ops.mean(y).backward()


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("mask", [False, True])
def test_the_image_and_b_have_the_same_gradients_with_a_frozen_a(mask, stride):
    rng = np.random.default_rng(0)
    x, w, a, b = (rng.standard_normal(shape) for shape in ((2, 6, 7, 3), (27, 5), (27, 2), (2, 5)))
    drop = (rng.random(x.shape) > 0.5) * 2.0 if mask else None
    grads = []
    for trains in (True, False):
        given, factors = Tensor(x, requires_grad=True), [Tensor(a, requires_grad=trains), Tensor(b, requires_grad=True)]
        y = ops.lora_conv2d(given, given.backend.freeze_weight(w), *factors, drop, scaling=0.7, kernel=3, stride=stride, padding=1)
        (y * y).mean().backward()
        grads.append((given.grad, factors[1].grad))
    assert all(np.allclose(one, two, atol=1e-14) for one, two in zip(*grads, strict=True))


def test_layers_in_a_row_with_a_frozen_a_go_one_by_one_in_training_alone():
    model = LoraModel.adapt(MLP([6, 8, 4], rng=0), LoraConfig(rank=2, options={"freeze_A": True}))
    layer = model.layers["0"]
    assert layer.link() is None
    model.eval()
    assert layer.link() is not None


@pytest.mark.parametrize("mask", [False, True])
def test_the_input_still_has_its_gradient(mask):
    rng = np.random.default_rng(0)
    x, w, a, b = (rng.standard_normal(shape) for shape in ((7, 6), (6, 5), (6, 2), (2, 5)))
    drop = (rng.random((7, 6)) > 0.5) * 2.0 if mask else None
    grads = []
    for trains in (True, False):
        given, factors = Tensor(x, requires_grad=True), [Tensor(a, requires_grad=trains), Tensor(b, requires_grad=True)]
        handle = given.backend.freeze_weight(w)
        y = ops.lora_linear(given, handle, *factors, drop, scaling=0.7)
        (y * y).mean().backward()
        grads.append((given.grad, factors[1].grad))
    assert all(np.allclose(one, two, atol=1e-14) for one, two in zip(*grads, strict=True))


def test_the_corrected_gradient_moves_the_weight_nearest_to_the_full_one():
    rng = np.random.default_rng(0)
    x, target = rng.standard_normal((50, 12)), rng.standard_normal((50, 8))
    base = Linear(12, 8, bias=False, rng=1, dtype=np.float64)
    ops.mean((base(x) - target) ** 2).backward()
    full = np.array(base.weight.grad)
    config = LoraConfig(rank=3, alpha=6, options={"freeze_A": True, "corrected": True}, targets="*")
    model = LoraModel.adapt(base, config)
    a = model.state()["root.lora_A"]
    want = a @ np.linalg.lstsq(a, full)[0]  # the nearest matrix to the full gradient that columns of A make
    trainer = Trainer(model, SGD(model.trainable(), lr=0.01), lambda y, t: ops.mean((y - t) ** 2))
    trainer.fit([(x, target)], epochs=1)
    assert np.allclose(model.layers["root"].adapter("default").block("").delta(base.weight.numpy()), -0.01 * want, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"freeze_A": 1}, "freeze_A of the method 'lora' must be True or False, found 1"),
        ({"corrected": True}, "corrected of the method 'lora' holds for a frozen A alone; set freeze_A too"),
    ],
)
def test_options_that_make_no_sense(options, said):
    with pytest.raises(ConfigError, match=said):
        LoraConfig(options=options)
