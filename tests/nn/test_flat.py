"""Small parameters are updated together, in one launch; nobody may see a difference but in time."""

import numpy as np
import pytest

from loratk import LoraConfig, LoraModel, get_backend, ops
from loratk.errors import ShapeError
from loratk.nn import MLP, SGD, Adam, AdamW, Parameter, flat
from loratk.nn.flat import LARGEST, side_by_side

SHAPES = [(3, 4), (5,), (2, 3, 2), (1, LARGEST + 1)]  # the last is too large to lie with the others


def parameters(seed=0):
    rng = np.random.default_rng(seed)
    return [Parameter(rng.standard_normal(shape, np.float32)) for shape in SHAPES]


def give(params, step):
    rng = np.random.default_rng(100 + step)
    for p in params:
        p.grad = rng.standard_normal(p.shape, np.float32)


def alone(kind):
    """A kind of optimiser that updates each parameter by itself."""
    return type("Alone", (kind,), {"elementwise": False})


def same(got, want):
    for a, b in zip(got, want, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())


KINDS = [(AdamW, {"lr": 0.1}), (Adam, {"lr": 0.1, "weight_decay": 0.1}), (SGD, {"lr": 0.1, "momentum": 0.9}), (SGD, {"lr": 0.1})]


def missing(params, optimizer, step):
    params[1].grad = None if step == 1 else params[1].grad


def replaced(params, optimizer, step):
    if step == 2:
        params[0].assign(np.full(SHAPES[0], 2, np.float32))
        params[1].data = np.full(SHAPES[1], 3, np.float32)


def frozen_for_a_step(params, optimizer, step):
    if step == 1:
        params[2].freeze()
    if step == 2:
        params[2].unfreeze()
        params[2].grad = np.ones(SHAPES[2], np.float32)


def reloaded(params, optimizer, step):
    if step == 2:
        optimizer.load_state_dict({name: array * 2 for name, array in optimizer.state_dict().items()})


def moved(params, optimizer, step):
    if step == 2:
        grads = [p.grad for p in params]
        params[0].move(get_backend("reference"))
        params[0].move(get_backend("cpu"))
        params[0].grad = grads[0]


@pytest.mark.parametrize("event", [lambda *_: None, missing, replaced, frozen_for_a_step, reloaded, moved])
@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_together_they_get_the_bits_each_would_get_alone(kind, options, event):
    got, want = parameters(), parameters()
    together, each = kind(got, **options), alone(kind)(want, **options)
    assert together._flats
    assert not each._flats
    for step in range(4):
        for params, optimizer in ((got, together), (want, each)):
            give(params, step)
            event(params, optimizer, step)
            optimizer.step()
        same(got, want)
    a, b = together.state_dict(), each.state_dict()
    assert a.keys() == b.keys()
    for name, array in a.items():
        np.testing.assert_array_equal(array, b[name], name)


def test_groups_keep_their_own_options():
    got, want = parameters(), parameters()
    groups = [[{"params": p[:2]}, {"params": p[2:], "lr": 0.5}] for p in (got, want)]
    together, each = AdamW(groups[0], lr=0.1), alone(AdamW)(groups[1], lr=0.1)
    for step in range(3):
        for params, optimizer in ((got, together), (want, each)):
            give(params, step)
            optimizer.step()
    same(got, want)


def test_two_optimisers_over_the_same_parameters_take_turns():
    got, want = parameters(), parameters()
    pairs = [
        (got, (AdamW(got, lr=0.1), SGD(got[:2], lr=0.1))),
        (want, (alone(AdamW)(want, lr=0.1), alone(SGD)(want[:2], lr=0.1))),
    ]
    for step in range(4):
        for params, optimizers in pairs:
            give(params, step)
            optimizers[step % 2].step()
    same(got, want)


def test_arrays_are_changed_in_place_and_gradients_left_alone():
    params = parameters()
    optimizer = AdamW(params, lr=0.1)
    arrays = [p.data for p in params]
    give(params, 0)
    grads = [(p.grad, p.grad.copy()) for p in params]
    optimizer.step()
    assert all(p.data is array for p, array in zip(params, arrays, strict=True))
    for p, (grad, values) in zip(params, grads, strict=True):
        assert p.grad is grad
        np.testing.assert_array_equal(grad, values)


def test_an_update_of_ones_own_sees_every_parameter_by_itself():
    seen = []

    class Watched(AdamW):
        def update(self, parameter, arrays, options, *, lr, step):
            seen.append(parameter.shape)
            super().update(parameter, arrays, options, lr=lr, step=step)

    params = parameters()
    give(params, 0)
    Watched(params, lr=0.1).step()
    assert seen == SHAPES


def test_a_gradient_of_another_shape_is_still_an_error_before_anything_moves():
    params = parameters()
    optimizer = AdamW(params, lr=0.1)
    give(params, 0)
    params[1].grad = np.ones(4, np.float32)
    with pytest.raises(ShapeError, match="Parameter 1 has shape"):
        optimizer.step()
    same(params, parameters())


def test_gradients_that_lie_side_by_side_are_not_copied():
    memory = np.arange(40.0)
    parts = [memory[2:12].reshape(2, 5), memory[12:16], memory[16:40].reshape(4, 6)]
    whole = side_by_side(parts)
    np.testing.assert_array_equal(whole, memory[2:])
    assert np.shares_memory(whole, memory)
    assert side_by_side(parts[::-1]) is None
    assert side_by_side(parts[::2]) is None
    assert side_by_side([*parts[:2], parts[2].copy()]) is None
    assert side_by_side([memory[2:12].reshape(2, 5).T, memory[12:16]]) is None
    assert side_by_side([np.ones(3), np.ones(3)]) is None


def test_a_chain_trains_the_same_whether_its_gradients_are_copied_or_not(monkeypatch):
    results = []
    for large in (0, 1 << 40):
        monkeypatch.setattr(flat, "LARGE", large)
        model = LoraModel.adapt(MLP([6, 9, 5, 7], rng=0), LoraConfig(rank=2, seed=1))
        optimiser, x = AdamW(model.trainable(), lr=1e-2), np.random.default_rng(2).standard_normal((8, 6), np.float32)
        for _ in range(4):
            optimiser.zero_grad()
            ops.cross_entropy(model(x), np.arange(8) % 7).backward()
            optimiser.step()
        assert (optimiser._flats[0]._gradients is None) == (large == 0)
        results.append(model(x).numpy())
    np.testing.assert_array_equal(*results)
