"""What scaling and start do to training: properties that the papers claim."""

import numpy as np
import pytest

from loratk import LoraConfig, LoraModel, ops
from loratk.nn import MLP, SGD, Adam, Linear
from loratk.testing.layer_type import randomize

RANKS = [4, 16, 64, 256, 512]


def first_step(rank, rslora):
    """The size of the first gradient of B, and how much its step lowers the loss."""
    rng = np.random.default_rng(0)
    base = Linear.from_arrays(rng.standard_normal((640, 520)), None)
    x, target = rng.standard_normal((64, 640)), rng.standard_normal((64, 520))
    model = LoraModel.adapt(base, LoraConfig(rank=rank, alpha=16, rslora=rslora, targets="*"))
    loss = ops.mean((model(x) - target) ** 2)
    loss.backward()
    norm = np.linalg.norm(model.layers["root"].adapter("default").tensors()["lora_B"].grad)
    SGD(model.trainable(), lr=1e-3).step()
    return norm, loss.item() - ops.mean((model(x) - target) ** 2).item()


def test_with_rslora_the_gradient_keeps_its_size_across_ranks():
    """Kalajdzievski 2023, theorem 3.2: with alpha / sqrt(r) all is Theta(1) in r, with alpha / r it vanishes."""
    stable, plain = ([first_step(rank, rslora) for rank in RANKS] for rslora in (True, False))
    norms, falls = zip(*stable, strict=True)
    assert max(norms) < 1.15 * min(norms)
    assert max(falls) < 1.25 * min(falls)
    norms, falls = zip(*plain, strict=True)
    assert norms[0] / norms[-1] == pytest.approx(128**0.5, rel=0.15)
    assert falls[0] / falls[-1] == pytest.approx(128, rel=0.25)


def steps_to(share, init, optimizer, lr, most=400):
    """How many steps until the loss is a share of what it was, where the principal part of a weight has to change."""
    rng = np.random.default_rng(0)
    u, v = (np.linalg.qr(rng.standard_normal((d, 24)))[0] for d in (32, 24))
    w = (u * (3 * 0.8 ** np.arange(24))) @ v
    target = w + u[:, :4] @ (0.5 * rng.standard_normal((4, 4))) @ v[:4]
    x = rng.standard_normal((256, 32))
    model = LoraModel.adapt(Linear.from_arrays(w, None), LoraConfig(rank=4, alpha=4, init=init, targets="*"))
    trained, first = optimizer(model.trainable(), lr=lr), None
    for step in range(most):
        loss = ops.mean((model(x) - x @ target) ** 2)
        first = first or loss.item()
        if loss.item() < share * first:
            return step
        loss.backward()
        trained.step()
        trained.zero_grad()
    return most


@pytest.mark.parametrize(("optimizer", "lr"), [(Adam, 0.003), (Adam, 0.01), (SGD, 0.3), (SGD, 1.0)])
def test_pissa_needs_fewer_steps_than_lora(optimizer, lr):
    """Meng et al. 2024, figure 2: where it matters what the weight does most, at any learning rate."""
    assert steps_to(0.01, "pissa", optimizer, lr) < 0.7 * steps_to(0.01, "kaiming", optimizer, lr)


def test_a_gain_is_learned_and_scales_the_update():
    x = np.random.default_rng(0).standard_normal((40, 6))
    model = LoraModel.adapt(MLP([6, 5, 4], rng=0, dtype=np.float64), LoraConfig(rank=2, alpha=4, method="lora_gain"))
    plain = LoraModel.adapt(MLP([6, 5, 4], rng=0, dtype=np.float64), LoraConfig(rank=2, alpha=4))
    randomize(model.layers["0"].adapters, 3)
    state = model.state()
    plain.load_state(
        {key: array * (state["0.gain"] if key == "0.lora_B" else 1) for key, array in state.items() if not key.endswith("gain")}
    )
    assert np.allclose(model(x).numpy(), plain(x).numpy(), atol=1e-12)
    before = float(state["0.gain"][0])
    ops.mean(model(x) ** 2).backward()
    Adam(model.trainable(), lr=0.1).step()
    assert abs(float(model.state()["0.gain"][0]) - before) > 0.05


def test_a_gain_starts_at_one_beside_any_init():
    x = np.random.default_rng(0).standard_normal((40, 6))
    base = MLP([6, 5, 4], rng=0, dtype=np.float64)
    want = base(x).numpy()
    model = LoraModel.adapt(base, LoraConfig(rank=2, method="lora_gain", init="pissa"))
    assert np.allclose(model(x).numpy(), want, atol=1e-12)
    assert model.state()["0.gain"].tolist() == [1.0]
