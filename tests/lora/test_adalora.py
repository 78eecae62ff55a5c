"""AdaLoRA: its budget, scores and cuts are the paper's, and ranks go where they are needed."""

import numpy as np
import pytest
from rank_problems import adapted, error, problem, ranks, train

from loratk import LoraConfig, LoraModel, Tensor, ops
from loratk.errors import ConfigError, StateError
from loratk.lora import Controller
from loratk.lora.budget import in_steps
from loratk.nn import MLP
from loratk.nn.optim import AdamW
from loratk.testing.vjp import check_vjp


def make(steps=100, rank=6, dtype=np.float64, **options):
    model = adapted({"rank": rank, "alpha": rank, "method": "adalora", "options": options}, dtype)
    (controller,) = model.controllers(steps)
    return model, controller


# What the paper says


def test_the_budget_falls_as_a_cube_from_the_first_ranks_to_the_target():
    _, controller = make(100, target_rank=2, tinit=10, tfinal=30)
    got = [controller.budget(step) for step in (1, 10, 11, 40, 69, 70, 100)]
    assert got == [12, 12, int(4 + 8 * (59 / 60) ** 3), 5, 4, 4, 4]
    assert int(4 + 8 * 0.5**3) == 5
    assert all(controller.budget(t) >= controller.budget(t + 1) for t in range(1, 100))


def test_without_a_target_two_thirds_of_the_ranks_are_left():
    assert make()[1].target == 8


def test_shares_of_the_steps_are_steps():
    _, controller = make(200, tinit=0.1, tfinal=0.25)
    assert (controller.first, controller.final) == (20, 50)
    assert [in_steps(v, 50) for v in (0, 0.5, 1, 7)] == [0, 25, 1, 7]
    assert make(None, total_steps=40)[1].total == 40
    assert make(99, total_steps=40)[1].total == 40


def test_scores_are_those_of_equations_7_to_11():
    model, controller = make(beta1=0.7, beta2=0.6)
    rng = np.random.default_rng(0)
    part = model.layers["left"].adapter("default").block("")
    mean, spread = {}, {}
    for _ in range(3):
        for name, parameter in part.tensors().items():
            parameter.assign(rng.standard_normal(parameter.shape))
            parameter.grad = rng.standard_normal(parameter.shape)
            now = abs(parameter.numpy() * parameter.grad)
            mean[name] = 0.7 * mean.get(name, 0) + 0.3 * now
            spread[name] = 0.6 * spread.get(name, 0) + 0.4 * abs(now - mean[name])
        controller.before_update()
    s = {name: mean[name] * spread[name] for name in mean}
    want = s["lora_E"] + s["lora_A"].sum(axis=0) / 16 + s["lora_B"].sum(axis=1) / 12
    np.testing.assert_allclose(controller.scores()["left"], want, rtol=1e-13)
    assert not controller.scores()["right"].any()  # it had no gradient


@pytest.mark.parametrize("form", ["squares", "norms"])
def test_the_penalty_is_the_distance_from_orthonormal_and_its_gradient_that_of_the_difference_quotient(form):
    model, controller = make(orth_weight=0.3, orth_form=form)
    rng = np.random.default_rng(1)
    for parameter in model.trainable():
        parameter.assign(rng.standard_normal(parameter.shape))
    factors = [vars(layer.adapter("default").block(""))[key] for layer in model.layers.values() for key in ("lora_A", "lora_B")]
    tall = [f.numpy() if f.shape[0] > f.shape[1] else f.numpy().T for f in factors]
    norms = [np.linalg.norm(x.T @ x - np.eye(6)) for x in tall]
    want = 0.3 * np.sum(np.square(norms)) if form == "squares" else 0.3 * np.mean(norms)
    assert controller.penalty().item() == pytest.approx(want, rel=1e-12)

    def penalty(*tensors):
        for i, part in enumerate(controller.parts.values()):
            vars(part)["lora_A"], vars(part)["lora_B"] = tensors[2 * i : 2 * i + 2]
        return controller.penalty()

    check_vjp(penalty, [f.numpy() for f in factors])


def test_a_penalty_of_orthonormal_factors_is_0_and_has_a_gradient():
    model, controller = make(orth_form="norms")
    for layer in model.layers.values():
        part = layer.adapter("default").block("")
        part.lora_A.assign(np.eye(16, 6))
        part.lora_B.assign(np.eye(6, 12))
    penalty = controller.penalty()
    penalty.backward()
    assert penalty.item() < 1e-100
    assert np.isfinite(part.lora_A.grad).all()
    assert make(orth_weight=0)[1].penalty() is None


def scored(scores, budget):
    """The masks of a controller whose layers have these scores."""
    _, controller = make(rank=3)
    controller.scores = lambda: scores
    controller._allot(budget)
    return {name: mask.astype(int).tolist() for name, mask in controller.masks.items()}


def test_the_best_of_all_layers_are_left_and_equals_one_by_one():
    assert scored({"left": np.array([5.0, 1, 4]), "right": np.array([3.0, 2, 6])}, 3) == {"left": [1, 0, 1], "right": [0, 0, 1]}
    assert scored({"left": np.zeros(3), "right": np.zeros(3)}, 4) == {"left": [1, 1, 1], "right": [1, 0, 0]}


def test_lambdas_are_cut_every_so_many_steps_grow_between_and_stay_cut_at_the_end():
    model, controller = make(20, target_rank=2, tinit=4, tfinal=6, deltaT=5)
    lambdas = {name: part.lora_E for name, part in controller.parts.items()}
    seen = []
    for _ in range(20):
        for parameter in model.trainable():
            parameter.grad = np.ones(parameter.shape)
        controller.before_update()
        for values in lambdas.values():
            values.assign(values.numpy() + 1.0)  # what an optimiser might do
        controller.after_update(0.1)
        seen.append(sum(np.count_nonzero(values.numpy()) for values in lambdas.values()))
    cuts = {step: controller.budget(step) for step in (5, 10)}
    assert seen == [12] * 4 + [cuts[5]] + [12] * 4 + [cuts[10]] + [12] * 3 + [4] * 7
    assert controller.record() == {"ranks": 4}


# What it is for


def test_ranks_go_to_the_layer_that_needs_them():
    """Changes of rank 5 and 1 on two layers, noise on the outputs, and a budget of 6 of 12 ranks."""
    x, y = problem(5, 1)
    noisy = y + 0.3 * np.random.default_rng(9).standard_normal(y.shape).astype(np.float32)
    model = adapted({"rank": 6, "alpha": 6, "method": "adalora", "options": {"target_rank": 3, "tinit": 0.25}})
    train(model, (x, noisy), 400)
    before, size = model(x).numpy(), model.count()
    report = model.compact()
    assert ranks(model) == report.after == {"left": 5, "right": 1}
    np.testing.assert_allclose(model(x).numpy(), before, atol=1e-6)
    assert model.count() == size - 6 * (16 + 12 + 1)
    assert error(model, (x, y)) < 0.03  # of 0.28 before training, in the noise's 0.09


# What ends up in config and file


def trained(**options):
    model = adapted({"rank": 6, "alpha": 9, "method": "adalora", "options": {"target_rank": 3, **options}})
    train(model, problem(5, 0), 60)
    return model


def test_a_layer_left_without_ranks_leaves_the_adapter(tmp_path):
    model = trained()
    part = model.layers["right"].adapter("default").block("")
    part.lora_E.assign(np.zeros(6, np.float32))
    x = problem(5, 0)[0]
    model.save(tmp_path / "whole.h5")
    want = model(x).numpy()
    report = model.compact()
    assert report.removed == ("right",)
    assert list(model.layers) == ["left"]
    np.testing.assert_allclose(model(x).numpy(), want, atol=1e-6)
    model.save(tmp_path / "cut.h5")
    again = LoraModel.from_file(type(model.base)(), tmp_path / "cut.h5")
    assert np.array_equal(again(x).numpy(), model(x).numpy())
    config = again.adapters["default"]
    assert config.exclude == ("right",)
    assert config.layer("left").rank == model.layers["left"].adapter("default").block("").rank < 6
    assert config.layer("left").scaling == pytest.approx(1.5)
    assert (tmp_path / "cut.h5").stat().st_size < (tmp_path / "whole.h5").stat().st_size


def test_it_is_exact_as_plain_lora(tmp_path):
    model = trained()
    x = problem(5, 0)[0]
    model.save(tmp_path / "a", format="peft")
    other = LoraModel.from_file(type(model.base)(), tmp_path / "a")
    assert {layer.adapter("default").block("").method.name for layer in other.layers.values()} == {"lora"}
    np.testing.assert_allclose(other(x).numpy(), model(x).numpy(), atol=1e-5)


# What cannot be


def test_a_run_of_unknown_length_or_without_a_step_to_cut_is_refused():
    with pytest.raises(ConfigError, match=r"must know how many steps there will be.*set its option total_steps"):
        make(None)
    with pytest.raises(ConfigError, match="no step in which to cut ranks: tinit is 5, tfinal 5, of 10 steps"):
        make(10, tinit=5, tfinal=5)
    with pytest.raises(ConfigError, match="begins with a mean rank of 6 and shall end with 6: nothing would be cut"):
        make(10, target_rank=6)


def test_layers_with_other_options_cannot_share_a_budget():
    config = {"rank": 4, "method": "adalora", "layer_pattern": {"left": {"options": {"beta1": 0.5}}}}
    with pytest.raises(ConfigError, match="'right' has other options than 'left'"):
        adapted(config).controllers(100)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"target_rank": 0}, "target_rank of the method 'adalora' must be a number above 0"),
        ({"total_steps": 1.5}, "total_steps .* whole number of at least 1"),
        ({"deltaT": 0}, "deltaT .* at least 1"),
        ({"tinit": -1}, "tinit .* whole number of steps, or a share"),
        ({"tfinal": 1.5}, "tfinal .* whole number of steps, or a share"),
        ({"beta1": 1}, r"beta1 .* in \(0, 1\)"),
        ({"orth_weight": float("nan")}, "orth_weight"),
        ({"orth_form": "x"}, "'squares' or 'norms'"),
        ({"x": 1}, "has no option 'x'"),
    ],
)
def test_bad_options_are_refused(options, said):
    with pytest.raises(ConfigError, match=said):
        LoraConfig(method="adalora", options=options)


def test_an_adapter_that_was_cut_needs_new_controllers_and_a_new_optimiser():
    model = trained()
    optimizer = AdamW(model.trainable(), lr=0.01)
    controllers = model.controllers(50)
    model.compact()
    with pytest.raises(StateError, match="was changed since this run began"):
        train(model, problem(5, 0), 1, controllers=controllers, optimizer=optimizer)
    from loratk.errors import ShapeError

    with pytest.raises(ShapeError, match="after resizing a parameter, make a new optimiser"):
        train(model, problem(5, 0), 1, controllers=[Controller()], optimizer=optimizer)
    train(model, problem(5, 0), 2, controllers=[Controller()])


def test_an_untrained_adapter_has_nothing_to_keep():
    model = LoraModel.adapt(MLP([4, 3], rng=0), LoraConfig(rank=2, method="adalora"))
    with pytest.raises(StateError, match="Nothing would be left of the adapter 'default'"):
        model.compact()
    assert isinstance(ops.mse(model(np.ones((2, 4), np.float32)), np.zeros((2, 3), np.float32)), Tensor)
