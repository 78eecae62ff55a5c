"""LoRA whose rank follows the energy of its update: it finds the rank that is needed, from below and from above."""

import numpy as np
import pytest
from rank_problems import D, K, adapted, change, error, problem, ranks, train

from loratk import LoraConfig, LoraModel
from loratk.errors import ConfigError, StateError
from loratk.lora.control import update
from loratk.lora.energy_rank import directions
from loratk.lora.methods.elastic import first_rank
from loratk.nn.optim import SGD, AdamW


def make(steps=None, rank=6, dtype=np.float64, **options):
    model = adapted({"rank": rank, "alpha": rank, "method": "elastic", "options": options}, dtype)
    (controller,) = model.controllers(steps)
    return model, controller, model.layers["left"].adapter("default").block("")


def give(part, matrix):
    """Factors of a matrix in the ranks that a layer uses, mixed, and whatever it is in the others."""
    used = np.flatnonzero(part.lora_A.numpy().any(axis=0))
    u, s, v = np.linalg.svd(matrix)
    mix = np.random.default_rng(0).standard_normal((len(used), len(used)))
    a, b = part.lora_A.numpy().copy(), part.lora_B.numpy().copy()
    a[:, used], b[used] = u[:, : len(used)] * s[: len(used)] @ mix, np.linalg.inv(mix) @ v[: len(used)]
    part.lora_A.assign(a)
    part.lora_B.assign(b)


def in_use(part):
    return int((part.lora_A.numpy().any(axis=0)).sum())


def test_how_many_directions_hold_a_share():
    values = np.array([2.0, 1, 1, 1e-9])  # squares: 4, 1, 1, 0 of 6
    assert [directions(values, share) for share in (0.1, 4 / 6, 0.67, 5 / 6, 0.999999, 1.0)] == [1, 1, 2, 2, 3, 3]
    assert directions(np.array([3.0, 3, 3]), 1.0) == 3


def test_it_begins_with_half_or_what_is_asked():
    assert [in_use(make(rank=r)[2]) for r in (5, 6, 1)] == [3, 3, 1]
    assert in_use(make(start_rank=2)[2]) == 2
    assert first_rank(4, {"start_rank": 9, "min_rank": 1}) == 4


def test_a_cut_leaves_the_best_of_that_rank_and_zeros_beside_it():
    _, controller, part = make(start_rank=6, every=1)
    matrix = 3 * change(2, 1) + 0.01 * change(6, 2)
    give(part, matrix)
    moments = [part.lora_A, part.lora_B]
    controller.after_update(0.1)
    assert in_use(part) == 2
    assert not part.lora_A.numpy()[:, 2:].any()
    assert not part.lora_B.numpy()[2:].any()
    s = np.linalg.svd(part.lora_A.numpy() @ part.lora_B.numpy())[1]
    u, values, v = np.linalg.svd(matrix)
    assert s[2:].max() < 1e-12
    np.testing.assert_allclose(part.lora_A.numpy() @ part.lora_B.numpy(), (u[:, :2] * values[:2]) @ v[:2], atol=1e-12)
    norms = np.linalg.norm(part.lora_A.numpy()[:, :2], axis=0), np.linalg.norm(part.lora_B.numpy()[:2], axis=1)
    np.testing.assert_allclose(*norms, rtol=1e-12)  # in equal parts
    assert [p is q for p, q in zip(controller.moved(), moments, strict=True)] == [True, True]
    controller.step = 1
    assert controller.record() == {"ranks": 2 + 6}  # the other layer has no update yet, and is left alone


def test_growth_adds_a_random_column_and_a_zero_row_and_leaves_the_update():
    _, controller, part = make(start_rank=2, every=5)
    give(part, change(2, 1))
    before = part.lora_A.numpy() @ part.lora_B.numpy()
    for step in range(1, 6):
        controller.after_update(0.1)
        assert in_use(part) == (3 if step == 5 else 2)
    assert part.lora_A.numpy()[:, 2].any()
    assert not part.lora_B.numpy()[2].any()
    assert np.array_equal(part.lora_A.numpy() @ part.lora_B.numpy(), before)
    assert not controller.moved()


def test_it_never_goes_above_the_configs_rank_or_below_min_rank_and_settles_at_last():
    _, controller, part = make(rank=3, start_rank=3, every=1, min_rank=2)
    give(part, change(3, 1))
    controller.after_update(0.1)
    assert in_use(part) == 3
    give(part, change(1, 1))
    controller.after_update(0.1)
    assert in_use(part) == 2
    _, controller, part = make(10, start_rank=2, every=1, tfinal=10)
    give(part, change(2, 1))
    controller.after_update(0.1)
    assert in_use(part) == 2


def test_a_rank_that_did_not_earn_its_energy_is_tried_less_and_less_often():
    _, controller, part = make(start_rank=2, every=1)
    seen = []
    for _ in range(24):
        give(part, change(2, 1))  # what training finds whatever the rank
        controller.after_update(0.1)
        seen.append(in_use(part))
    tries = [i for i in range(1, 24) if seen[i] > seen[i - 1]]
    assert seen[0] == 3
    assert np.diff([0, *tries]).tolist() == [3, 4, 6, 10][: len(tries)]


@pytest.mark.parametrize("start", [1, 10])
def test_it_finds_the_true_ranks(start):
    data = problem(4, 2)
    model = adapted({"rank": 10, "alpha": 10, "method": "elastic", "options": {"start_rank": start}})
    (controller,), losses = train(model, data, 600)
    assert controller.record() == {"ranks": 6}
    want = model(data[0]).numpy()
    report = model.compact()
    assert ranks(model) == report.after == {"left": 4, "right": 2}
    assert report.before == {"left": 10, "right": 10}
    np.testing.assert_allclose(model(data[0]).numpy(), want, atol=1e-5)
    assert losses[-1] < 1e-6 * losses[0]
    assert error(model, data) < 1e-6


def test_what_is_not_used_stays_zero_under_an_optimiser_that_was_not_started_anew():
    model, controller, part = make(start_rank=6, every=1)
    give(part, change(2, 1))
    optimizer = SGD(model.trainable(), lr=0.1, momentum=0.9)
    for parameter in model.trainable():
        parameter.grad = np.ones(parameter.shape)
    optimizer.step()
    give(part, change(2, 1))
    controller.after_update(0.1)
    for parameter in model.trainable():
        parameter.grad = np.zeros(parameter.shape)
    optimizer.step()
    assert part.lora_A.numpy()[:, 3:].any()
    controller._options["left"]["every"] = 100
    controller.after_update(0.1)
    assert in_use(part) == 2


def test_an_optimiser_starts_anew_what_was_moved_and_nothing_else():
    model, _, part = make()
    optimizer = AdamW(model.trainable(), lr=0.1)
    for parameter in model.trainable():
        parameter.grad = np.ones(parameter.shape)
    optimizer.step()
    before = optimizer.state_dict()
    optimizer.restart([part.lora_A])
    after = optimizer.state_dict()
    place = next(i for i, p in enumerate(model.trainable()) if p is part.lora_A)
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed == {f"{place}.steps", f"{place}.m", f"{place}.v"}
    assert after[f"{place}.steps"] == 0
    assert not after[f"{place}.m"].any()
    for parameter in model.trainable():
        parameter.grad = np.ones(parameter.shape)
    values = part.lora_A.numpy().copy()
    optimizer.step()
    np.testing.assert_allclose(part.lora_A.numpy(), values * (1 - 0.1 * 0.01) - 0.1, rtol=1e-6)  # as Adam's first step


def test_a_step_with_a_cut_ends_with_an_optimiser_that_knows_nothing_of_what_was_cut():
    model, controller, part = make(start_rank=6, every=1)
    give(part, change(2, 1))
    optimizer = SGD(model.trainable(), lr=1e-9, momentum=0.9)
    for parameter in model.trainable():
        parameter.grad = np.ones(parameter.shape)
    controller._options["right"]["every"] = 100
    update([controller], optimizer)
    assert in_use(part) == 2
    memory = optimizer.state_dict()
    for place, parameter in enumerate(model.trainable()):
        cut = any(parameter is factor for factor in (part.lora_A, part.lora_B))
        assert memory[f"{place}.velocity"].any() == (not cut)


def test_its_file_is_plain_lora(tmp_path):
    data = problem(2, 2)
    model = adapted({"rank": 6, "alpha": 6, "method": "elastic"})
    train(model, data, 60)
    model.save(tmp_path / "a.safetensors", format="kohya")
    other = LoraModel.from_file(type(model.base)(), tmp_path / "a.safetensors", format="kohya", check_base=False)
    assert other.layers["left"].adapter("default").block("").method.name == "lora"
    np.testing.assert_allclose(other(data[0]).numpy(), model(data[0]).numpy(), atol=1e-6)
    model.save(tmp_path / "a.h5")
    again = LoraModel.from_file(type(model.base)(), tmp_path / "a.h5")
    assert again.layers["left"].adapter("default").block("").method.name == "elastic"
    assert again.controllers()[0].used["left"].sum() == in_use(model.layers["left"].adapter("default").block(""))


def test_after_a_cut_new_controllers_are_needed():
    model, controller, part = make(start_rank=6)
    give(part, change(2, 1))
    part.lora_A.assign(np.where(np.arange(6) < 2, part.lora_A.numpy(), 0))
    part.lora_B.assign(np.where(np.arange(6)[:, None] < 2, part.lora_B.numpy(), 0))
    model.compact()
    assert (part.rank, part.lora_A.shape, part.lora_B.shape) == (2, (D, 2), (2, K))
    with pytest.raises(StateError, match="was changed since this run began"):
        controller.before_step()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"options": {"start_rank": 0}}, "start_rank .* at least 1"),
        ({"options": {"every": None}}, "every .* at least 1"),
        ({"options": {"energy": 0}}, r"energy .* in \(0, 1\]"),
        ({"options": {"tfinal": -1}}, "tfinal"),
        ({"init": "gaussian"}, "has first values of its own and takes no init"),
    ],
)
def test_bad_settings_are_refused(settings, said):
    with pytest.raises(ConfigError, match=said):
        LoraConfig(method="elastic", **settings)
