"""Alphas from data: the first step as far as full fine-tuning's, or the least loss."""

import numpy as np
import pytest
from init_examples import mse, rows

from loratk import LoraConfig, LoraModel, choose_alpha
from loratk.errors import ConfigError, DtypeError, StateError
from loratk.nn import MLP, SGD, Adam, Dropout, Embedding, QKVProjection, Sequential
from loratk.testing.layer_type import randomize

X, Y = rows(80, 6), rows(80, 4, 9)


def make(**config):
    return LoraModel.adapt(MLP([6, 8, 4], rng=0, dtype=np.float64), LoraConfig(**{"rank": 2, **config}))


def full_gradients():
    base = MLP([6, 8, 4], rng=0, dtype=np.float64)
    mse(base(X), Y).backward()
    return {name: np.array(vars(base)[name].weight.grad) for name in ("0", "2")}


@pytest.mark.parametrize("init", [None, "gaussian", "pissa", "orthogonal"])
@pytest.mark.parametrize("rslora", [False, True])
def test_by_gradient_the_first_step_goes_as_far_as_full_fine_tunings(rslora, init):
    model = make(rslora=rslora, init=init)
    chosen = choose_alpha(model, data=[(X, Y)], loss=mse)
    parts = {name: layer.adapter("default").block("") for name, layer in model.layers.items()}
    weights = {name: layer.base.weight.numpy() for name, layer in model.layers.items()}
    want = {name: 1e-7 * np.linalg.norm(g) for name, g in full_gradients().items()}
    before = {name: part.delta(weights[name]) for name, part in parts.items()}
    mse(model(X), Y).backward()
    SGD(model.trainable(), lr=1e-7).step()
    for name, part in parts.items():
        assert np.linalg.norm(part.delta(weights[name]) - before[name]) == pytest.approx(want[name], rel=1e-3)
    assert [choice.name for choice in chosen.layers] == ["0", "2"]
    assert all(part.config is model.adapters["default"] for part in parts.values())
    assert all(
        choice.scaling == parts[choice.name].scaling == model.adapters["default"].layer(choice.name).scaling for choice in chosen.layers
    )
    assert all(choice.alpha != choice.alpha_before == 8.0 for choice in chosen.layers)


def test_the_config_and_the_file_say_it(tmp_path):
    model = make()
    choose_alpha(model, data=iter([(X, Y)]), loss=mse)
    randomize(model.layers["0"].adapters, 2)
    assert set(model.adapters["default"].alpha_pattern) == {"0", "2"}
    model.save(tmp_path / "a.h5")
    again = LoraModel.from_file(MLP([6, 8, 4], rng=0, dtype=np.float64), tmp_path / "a.h5")
    assert np.array_equal(again(X).numpy(), model(X).numpy())
    assert again.adapters == model.adapters


def test_by_loss_the_weight_is_the_best_there_is():
    model = make()
    optimizer = Adam(model.trainable(), lr=0.02)
    for _ in range(60):
        mse(model(X), Y).backward()
        optimizer.step()
        optimizer.zero_grad()
    for layer in model.layers.values():  # as if somebody had taken the alpha for another
        for p in layer.adapter("default").parameters():
            p.data *= 0.6
    model.add_adapter("other", LoraConfig(rank=1))
    model.set_active({"default": 1.0, "other": 0.5})
    found = choose_alpha(model, data=[(X[:40], Y[:40]), (X[40:], Y[40:])], loss=mse, rule="loss")
    assert model.active == {"default": 1.0, "other": 0.5}
    assert found.loss < found.loss_before
    assert mse(model(X), Y).item() == pytest.approx(found.loss, rel=1e-9)
    assert found.weight > 1.5
    assert [choice.scaling / choice.scaling_before for choice in found.layers] == pytest.approx([found.weight] * 2)
    losses = []
    for factor in (0.95, 1.0, 1.05):
        model.set_active({"default": factor, "other": 0.5})
        losses.append(mse(model(X), Y).item())
    assert losses[1] == min(losses)


def test_by_loss_dropout_is_off_and_changes_of_biases_follow():
    base = Sequential(MLP([6, 8, 4], rng=0, dtype=np.float64), Dropout(0.5, rng=0))
    model = LoraModel.adapt(base, LoraConfig(rank=2, bias="lora_only", dropout=0.5)).train()
    for layer in model.layers.values():
        randomize(layer.adapters, 2)
    found = choose_alpha(model, data=[(X, Y)], loss=mse, rule="loss")
    assert all(module.training for _, module in model.modules())
    assert mse(model.eval()(X), Y).item() == pytest.approx(found.loss, rel=1e-9)


def test_column_blocks_and_embeddings_have_their_own():
    base = Sequential(Embedding(9, 4, rng=0, dtype=np.float64), QKVProjection(4, heads=2, kv_heads=1, rng=1, dtype=np.float64))
    model = LoraModel.adapt(base, LoraConfig(rank=1, targets="*"))
    x = np.arange(9)[None]
    chosen = choose_alpha(model, data=[(x, rows(9, 8)[None])], loss=mse)
    assert [choice.name for choice in chosen.layers] == ["0", "1.q", "1.k", "1.v"]
    assert len({choice.alpha for choice in chosen.layers}) == 4


@pytest.mark.parametrize(
    ("config", "how", "error", "said"),
    [
        ({}, {"rule": "luck"}, ConfigError, "rule must be one of 'gradient', 'loss', found 'luck'"),
        ({"method": "dora"}, {}, ConfigError, "an update that is scaling A B; that of the method 'dora' is not"),
        ({}, {"data": [X]}, DtypeError, r"A batch of data must be a pair \(x, y\)"),
        ({}, {"data": []}, ConfigError, "The data gave no batch"),
        ({}, {"data": [], "rule": "loss"}, ConfigError, "The data gave no batch"),
        ({}, {"rule": "loss", "span": 1}, ConfigError, "span must be a number above 1"),
        ({}, {"loss": lambda y, _: mse(y, y.numpy())}, ConfigError, "The gradient of '0', '2' is 0"),
    ],
)
def test_refused(config, how, error, said):
    with pytest.raises(error, match=said):
        choose_alpha(make(**config), **{"data": [(X, Y)], "loss": mse, **how})


def test_a_trained_adapter_is_refused_by_gradient():
    model = make()
    randomize(model.layers["2"].adapters, 2)
    with pytest.raises(StateError, match="take rule='loss':\n  - '2' has been trained"):
        choose_alpha(model, data=[(X, Y)], loss=mse)
