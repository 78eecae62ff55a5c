"""Adapters learn: gradients through whole models, and real training with any optimiser."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from loratk import LoraConfig, LoraModel, Tensor
from loratk.autograd import ops
from loratk.nn import MLP, SGD, Adam, AdamW, Sequential, Tanh, TransformerEncoderLayer
from loratk.plugins import default_registry
from loratk.testing.layer_type import randomize


def train(model, x, y, optimizer, steps):
    losses = []
    for _ in range(steps):
        loss = ops.mse(model(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.fixture
def task():
    """Rows (64, 6), and what a base with a changed second layer makes of them."""
    x = np.random.default_rng(0).standard_normal((64, 6)).astype(np.float32)
    changed = MLP([6, 8, 3], activation="tanh", rng=0)
    changed.get("2").weight.assign(changed.get("2").weight.numpy() + 0.5 * np.outer(np.ones(8), [1, -1, 2]).astype(np.float32))
    return x, changed(x).numpy()


REACHED = {"ia3": 0.3, "vera": 0.3, "lokr": 0.03}
"""What of the loss is left where an update of few numbers cannot be any change of low rank; a hundredth for all others."""


@pytest.mark.parametrize("method", default_registry().methods)
def test_an_adapter_learns_a_low_rank_change_and_the_base_stays(method, task):
    x, y = task
    model = LoraModel.adapt(MLP([6, 8, 3], activation="tanh", rng=0), LoraConfig(2, 4, method=method))
    before, start = model.fingerprint(), model.state()
    losses = train(model, x, y, Adam(model.trainable(), lr=0.03), 150)
    assert losses[-1] < REACHED.get(method, 0.01) * losses[0]
    assert model.fingerprint() == before
    assert any(not np.array_equal(array, start[name]) for name, array in model.state().items() if name.startswith("2."))
    merged = model.merged_state()
    plain = MLP([6, 8, 3], activation="tanh", rng=0)
    plain.load_state_dict(merged)
    np.testing.assert_allclose(plain(x).numpy(), model(x).numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bias", ["none", "lora_only"])
def test_only_what_shall_train_changes(bias, task):
    x, y = task
    model = LoraModel.adapt(MLP([6, 8, 3], rng=0), LoraConfig(2, targets=["2"], bias=bias))
    model.add_adapter("idle", LoraConfig(2))
    before = {name: array.copy() for name, array in model.state_dict().items()}
    train(model, x, y, AdamW(model.trainable(), lr=0.1, weight_decay=0.1), 2)
    changed = {name for name, array in model.state_dict().items() if not np.array_equal(array, before[name])}
    want = {"lora_A", "lora_B"} | ({"bias"} if bias == "lora_only" else set())
    assert {name.rsplit(".", 1)[1] for name in changed} == want
    assert all(".2.adapters.default." in name for name in changed)


def test_the_base_trains_too_once_it_may(task):
    x, y = task
    model = LoraModel.adapt(MLP([6, 8, 3], rng=0), LoraConfig(2))
    before = model.fingerprint()
    model.unfreeze_base()
    losses = train(model, x, y, SGD(model.trainable(), lr=0.1), 5)
    assert losses[-1] < losses[0]
    assert model.fingerprint() != before


def test_lora_plus_is_two_groups(task):
    """Hayou et al. 2024: B learns with a larger rate than A."""
    x, y = task
    model = LoraModel.adapt(MLP([6, 8, 3], rng=0), LoraConfig(2))
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups = [
        {"params": [p for name, p in named if not name.endswith("lora_B")]},
        {"params": [p for name, p in named if name.endswith("lora_B")], "lr": 0.16},
    ]
    assert [len(group["params"]) for group in groups] == [2, 2]
    before = model.state()
    train(model, x, y, SGD(groups, lr=0.01), 1)
    plain = LoraModel.adapt(MLP([6, 8, 3], rng=0), LoraConfig(2))
    train(plain, x, y, SGD(plain.trainable(), lr=0.01), 1)
    for name, array in model.state().items():
        if name.endswith("lora_B"):
            np.testing.assert_allclose(array - before[name], 16 * (plain.state()[name] - before[name]), rtol=1e-4, atol=1e-8)
        else:
            assert np.array_equal(array, plain.state()[name])


def test_training_repeats_to_the_last_bit(task):
    x, y = task

    def run():
        model = LoraModel.adapt(MLP([6, 8, 3], rng=0), LoraConfig(2, dropout=0.3, seed=5)).train()
        return train(model, x, y, Adam(model.trainable(), lr=0.01), 5), model.state()

    (losses, state), (losses_again, again) = run(), run()
    assert losses == losses_again
    assert all(np.array_equal(state[name], again[name]) for name in state)


@pytest.mark.parametrize("scaling", [1.0, 0.5, 3.0])
def test_gradients_of_a_deep_model_are_difference_quotients(scaling):
    x = np.random.default_rng(0).standard_normal((2, 3, 4))
    base = Sequential(*(TransformerEncoderLayer(4, 2, 6, activation="tanh", rng=i, dtype=np.float64) for i in range(2)), Tanh())
    model = LoraModel.adapt(base, LoraConfig(2, 2 * scaling, bias="all")).eval()
    for i, layer in enumerate(model.layers.values()):
        randomize(layer.adapters, i)
    weights = np.random.default_rng(1).standard_normal((2, 3, 4))
    (model(x) * Tensor(weights)).sum().backward()
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        values = np.array(parameter.numpy())
        direction = np.random.default_rng(2).standard_normal(values.shape)
        ends = []
        for step in (1e-5, -1e-5):
            parameter.assign(values + step * direction)
            ends.append(float(np.sum(model(x).numpy() * weights)))
        want, got = (ends[0] - ends[1]) / 2e-5, float(np.sum(parameter.grad * direction))
        parameter.assign(values)
        assert got == pytest.approx(want, rel=1e-5, abs=1e-7), name


def test_accumulated_gradients_are_those_of_the_whole_batch(task):
    x, y = task
    model = LoraModel.adapt(MLP([6, 8, 3], rng=0), LoraConfig(2))
    ops.mse(model(x), y).backward()
    want = [p.grad.copy() for p in model.trainable()]
    model.zero_grad()
    for part in (slice(0, 32), slice(32, 64)):
        (ops.mse(model(x[part]), y[part]) * 0.5).backward()
    for p, grad in zip(model.trainable(), want, strict=True):
        np.testing.assert_allclose(p.grad, grad, rtol=1e-4, atol=1e-7)


def test_models_that_train_in_several_threads_at_once_end_with_the_bits_of_training_alone():
    def trained(seed):
        rng = np.random.default_rng(seed)
        x, y = (rng.standard_normal((256, 128)).astype(np.float32) for _ in range(2))
        model = LoraModel.adapt(MLP([128, 256, 128], rng=1), LoraConfig(4, dropout=0.1, seed=seed))
        train(model, x, y, AdamW(model.trainable(), lr=1e-2), 10)
        return b"".join(array.tobytes() for array in model.state().values())

    want = [trained(seed) for seed in range(3)]
    with ThreadPoolExecutor(3) as threads:
        assert list(threads.map(trained, range(3))) == want
