"""DyLoRA: one training serves every rank, which can be chosen, saved and cut out afterwards."""

import copy

import numpy as np
import pytest
from rank_problems import D, K, Pair, adapted, error, ranks, train

from loratk import LoraConfig, LoraModel, ops
from loratk.errors import ConfigError, StateError
from loratk.nn.optim import SGD
from loratk.testing.layer_type import randomize

RANK = 6


def make(dtype=np.float64, **settings):
    """A model with random factors."""
    model = adapted({"rank": RANK, "alpha": 3, "method": "dylora", **settings}, dtype)
    for i, layer in enumerate(model.layers.values()):
        randomize(layer.adapters, i)
    return model


def parts(model):
    return {name: layer.adapter("default").block("") for name, layer in model.layers.items()}


def update_of(part, rank, scaling):
    return scaling * part.lora_A.numpy()[:, :rank] @ part.lora_B.numpy()[:rank]


X = np.random.default_rng(0).standard_normal((5, D))


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("rank", [1, 2, 5, 6, 9, None])
def test_the_chosen_rank_acts_merges_and_is_saved(tmp_path, rank, rslora):
    model = make(rslora=rslora)
    used = min(rank or RANK, RANK)
    model.use_rank("default", rank)
    scaling = 3 / used**0.5 if rslora else 3 / used
    with model.disabled():
        base = model(X).numpy()
    want = base + np.concatenate([X @ update_of(part, used, scaling) for part in parts(model).values()], axis=1)
    np.testing.assert_allclose(model(X).numpy(), want, atol=1e-12)
    model.merge()
    np.testing.assert_allclose(model(X).numpy(), want, atol=1e-12)
    with pytest.raises(StateError, match="Cannot choose a rank while 'default' is merged"):
        model.use_rank("default", 2)
    model.unmerge()
    model.save(tmp_path / "a.h5")
    again = LoraModel.from_file(Pair(np.float64), tmp_path / "a.h5")
    np.testing.assert_allclose(again(X).numpy(), want, atol=1e-12)
    assert ranks(again) == dict.fromkeys(("left", "right"), used)
    again.use_rank("default", 1)  # what was saved is DyLoRA again, of that rank
    model.use_rank("default", 1)
    np.testing.assert_allclose(again(X).numpy(), model(X).numpy(), atol=1e-12)
    model.use_rank("default", rank)
    model.save(tmp_path / "peft", format="peft")
    other = LoraModel.from_file(Pair(np.float64), tmp_path / "peft")
    assert {part.method.name for part in parts(other).values()} == {"lora"}
    np.testing.assert_allclose(other(X).numpy(), want, atol=1e-12)


def test_a_step_draws_one_rank_for_all_layers_and_forgets_it_in_evaluation():
    model = make(layer_pattern={"right": {"rank": 3}})
    (controller,) = model.controllers()
    seen, x = [], X
    for _ in range(200):
        controller.before_step()
        seen.append(controller.rank)
        held = parts(model)
        assert (held["left"].rank_used, held["right"].rank_used) == (controller.rank, min(controller.rank, 3))
        model.eval()
        assert held["left"].rank_used is None
        model.train()
        controller.after_update(0.1)
        assert controller.record() == {"rank": controller.rank}
    assert held["left"].rank_used is None
    counts = np.bincount(seen)[1:]
    assert len(counts) == RANK
    assert counts.min() > 15
    assert np.isfinite(model(x).numpy()).all()


@pytest.mark.parametrize("update", ["all", "last"])
def test_only_the_drawn_ranks_learn(update):
    model = make(options={"update": update})
    (controller,) = model.controllers()
    before = {name: value.copy() for name, value in model.state().items()}
    controller.before_step()
    ops.mse(model(X), np.zeros((5, 2 * K))).backward()
    controller.before_update()
    SGD(model.trainable(), lr=0.1).step()
    controller.after_update(0.1)
    moved = range(controller.rank) if update == "all" else [controller.rank - 1]
    for name, value in model.state().items():
        axis = 0 if name.endswith("lora_A") else 1
        assert np.flatnonzero((value != before[name]).any(axis=axis)).tolist() == list(moved)


def test_min_rank_is_the_least():
    model = make(options={"min_rank": 4})
    (controller,) = model.controllers()
    drawn = set()
    for _ in range(60):
        controller.before_step()
        drawn.add(controller.rank)
    assert drawn == {4, 5, 6}
    with pytest.raises(ConfigError, match="min_rank of the method 'dylora' is 7, above the largest rank of its layers, 6"):
        make(options={"min_rank": 7}).controllers()


def test_its_truncated_ranks_beat_those_of_plain_lora():
    """Inputs of unequal spread and changes of falling singular values; plain LoRA is cut as DyLoRA is, to its first ranks."""
    rng, base = np.random.default_rng(3), Pair(np.float64)
    x = (rng.standard_normal((256, D)) * np.linspace(0.2, 2, D)).astype(np.float32)
    pieces = []
    for seed, layer in ((4, base.left), (5, base.right)):
        u, v = (np.linalg.qr(np.random.default_rng(seed + s).standard_normal((n, 8)))[0] for s, n in ((0, D), (100, K)))
        pieces.append(x @ (layer.weight.numpy() + (u * 0.6 ** np.arange(8)) @ v.T))
    data = x, np.concatenate(pieces, axis=1).astype(np.float32)
    dynamic, plain = (adapted({"rank": 8, "alpha": 8, "method": method}) for method in ("dylora", "lora"))
    for model in (dynamic, plain):
        train(model, data, 1000, lr=0.01)
    for rank in range(1, 8):
        dynamic.use_rank("default", rank)
        cut = copy.deepcopy(plain)
        for part in parts(cut).values():
            part.lora_A.assign(np.where(np.arange(8) < rank, part.lora_A.numpy(), 0))
        assert error(dynamic, data) < 0.75 * error(cut, data)
    plain.resize(rank=1)
    dynamic.use_rank("default", 1)
    assert error(dynamic, data) < error(plain, data)  # better than the best approximation of what plain LoRA found


def test_cutting_to_a_rank_leaves_a_plain_smaller_adapter():
    model = make()
    model.use_rank("default", 4)
    want, held = model(X).numpy(), parts(model)["left"].lora_A
    report = model.resize(rank=4)
    assert report.after == {"left": 4, "right": 4}
    part = parts(model)["left"]
    assert (part.method.name, part.rank_now, part.scaling) == ("lora", None, 0.75)
    assert part.lora_A is held
    np.testing.assert_allclose(model(X).numpy(), want, atol=1e-12)
    assert model.adapters["default"].method == "lora"
    assert model.adapters["default"].layer("left").rank == 4


def test_only_dylora_has_ranks_to_choose():
    model = adapted({"rank": 3})
    with pytest.raises(ConfigError, match="first ranks of the method 'lora', as on 'left', are no adapter by themselves; resize"):
        model.use_rank("default", 2)
    for rank in (0, 1.5, True):
        with pytest.raises(ConfigError, match="rank must be a whole number of at least 1, or None"):
            make().use_rank("default", rank)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"options": {"min_rank": 0}}, "min_rank .* at least 1"),
        ({"options": {"update": "first"}}, "update .* 'all' or 'last'"),
        ({"options": {"freeze_A": True}}, "has no option 'freeze_A'"),
        ({"init": "pissa"}, "takes its first product off the base's weight, which the method 'dylora' does not allow"),
    ],
)
def test_bad_settings_are_refused(settings, said):
    with pytest.raises(ConfigError, match=said):
        LoraConfig(method="dylora", **settings)
