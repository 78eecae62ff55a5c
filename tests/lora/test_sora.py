"""SoRA: proximal steps bring gates to 0, those that nothing needs first, and what is shut can be cut."""

import numpy as np
import pytest
from rank_problems import adapted, error, problem, ranks, train

from loratk import LoraConfig, LoraModel
from loratk.errors import ConfigError, StateError
from loratk.lora.proximal import strength


def make(steps=100, **options):
    model = adapted({"rank": 8, "alpha": 8, "method": "sora", "options": options})
    (controller,) = model.controllers(steps)
    return model, controller


def gates(model):
    return {name: layer.adapter("default").block("").gate.numpy() for name, layer in model.layers.items()}


@pytest.mark.parametrize(("options", "threshold"), [({}, 0.1 * 0.5), ({"lambda": 0.3, "times_lr": False}, 0.3), ({"lambda": 0}, 0.0)])
def test_a_gate_goes_by_the_threshold_towards_0_and_stops_there(options, threshold):
    model, controller = make(**options)
    values = np.array([-2, -0.3, -0.05, -0.01, 0, 0.04, 0.3001, 1], np.float32)
    model.layers["left"].adapter("default").block("").gate.assign(values)
    controller.after_update(0.5)
    want = np.sign(values) * np.maximum(abs(values) - np.float32(threshold), 0)
    np.testing.assert_allclose(gates(model)["left"], want, rtol=1e-6)
    assert not np.signbit(gates(model)["left"][want == 0]).any()


@pytest.mark.parametrize(
    ("schedule", "middle"), [("linear", 5.5), ("log_linear", np.log((np.e + np.exp(10.0)) / 2)), ("exp_linear", 10**0.5)]
)
def test_lambda_rises_from_the_first_step_to_the_last(schedule, middle):
    options = {"lambda": 1.0, "max_lambda": 10.0, "schedule": schedule}
    assert [strength(options, done) for done in (0, 0.5, 1)] == pytest.approx([1, middle, 10])
    model, controller = make(3, times_lr=False, **options)
    before, falls = 100.0, []
    model.layers["left"].adapter("default").block("").gate.assign(np.full(8, before, np.float32))
    for _ in range(3):
        controller.after_update(0.1)
        falls.append(before - gates(model)["left"][0])
        before = gates(model)["left"][0]
    assert falls == pytest.approx([1, middle, 10], rel=1e-5)


def test_gates_vanish_where_nothing_needs_them():
    """A change of rank 3 on one layer, none on the other: of 8 gates each most shut, on the second layer all."""
    data = problem(3, 0)
    model = adapted({"rank": 8, "alpha": 8, "method": "sora", "options": {"lambda": 0.3}})
    (controller,), losses = train(model, data, 800)
    size, want = model.count(), model(data[0]).numpy()
    assert losses[-1] < 1e-3 * losses[0]
    report = model.compact()
    assert report.removed == ("right",)
    assert 3 <= ranks(model)["left"] <= 5
    assert controller.record() == {"ranks": ranks(model)["left"]}
    np.testing.assert_allclose(model(data[0]).numpy(), want, atol=1e-5)
    assert model.count() == size - (16 - ranks(model)["left"]) * (16 + 12 + 1)
    plain = adapted({"rank": 8, "alpha": 8})
    train(plain, data, 800)
    assert all(np.linalg.svd(p.lora_A.numpy() @ p.lora_B.numpy())[1][7] < 1e-3 for p in [plain.layers["left"].adapter("default").block("")])


def test_a_shut_gate_may_open_again():
    """The gradient of a gate does not vanish with it: x A B has one wherever A and B are not 0."""
    data = problem(3, 1)
    model = adapted({"rank": 8, "alpha": 8, "method": "sora", "options": {"lambda": 0.0}})
    train(model, data, 20)
    part = model.layers["left"].adapter("default").block("")
    part.gate.assign(np.zeros(8, np.float32))
    train(model, data, 200)
    assert part.gate.numpy().all()
    assert error(model, data) < 1e-3


def test_a_file_brings_it_back_and_other_formats_get_plain_lora(tmp_path):
    data = problem(3, 1)
    model = adapted({"rank": 8, "alpha": 8, "method": "sora", "options": {"lambda": 0.3}})
    train(model, data, 60)
    want = model(data[0]).numpy()
    model.save(tmp_path / "a.h5")
    assert np.array_equal(LoraModel.from_file(type(model.base)(), tmp_path / "a.h5")(data[0]).numpy(), want)
    for name, form in (("peft", "peft"), ("b.safetensors", "kohya")):
        model.save(tmp_path / name, format=form)
        other = LoraModel.from_file(type(model.base)(), tmp_path / name, format=form, check_base=False)
        np.testing.assert_allclose(other(data[0]).numpy(), want, atol=1e-5)


def test_a_rising_lambda_needs_to_know_the_steps_and_a_cut_adapter_new_controllers():
    rising = {"schedule": "linear", "max_lambda": 1.0}
    with pytest.raises(ConfigError, match="rises over the run, and nobody knows how many steps"):
        make(None, **rising)
    make(None)
    model, controller = make()
    model.layers["left"].adapter("default").block("").gate.assign(np.zeros(8, np.float32))
    model.compact()
    with pytest.raises(StateError, match="was changed since this run began"):
        controller.before_step()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"lambda": -1}, "lambda .* at least 0"),
        ({"times_lr": 1}, "times_lr .* True or False"),
        ({"schedule": "x"}, "schedule .* must be one of"),
        ({"max_lambda": 1.0}, "max_lambda .* goes with a schedule that rises"),
        ({"schedule": "linear"}, "max_lambda .* at least lambda"),
        ({"schedule": "linear", "max_lambda": 0.01}, "max_lambda .* at least lambda"),
        ({"schedule": "exp_linear", "max_lambda": 1.0, "lambda": 0}, "above 0 to rise by equal factors"),
    ],
)
def test_bad_options_are_refused(options, said):
    with pytest.raises(ConfigError, match=said):
        LoraConfig(method="sora", options=options)
