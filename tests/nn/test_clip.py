"""Gradient clipping, and the losses as modules."""

import math

import numpy as np
import pytest

from loratk.autograd import Tensor, ops
from loratk.errors import AnomalyError, ConfigError, ShapeError
from loratk.nn import BCEWithLogitsLoss, CrossEntropyLoss, Linear, MSELoss, Parameter, clip_grad_norm, clip_grad_value


def with_gradients(*gradients, dtype=np.float64):
    parameters = []
    for gradient in gradients:
        parameters.append(Parameter(np.zeros(len(gradient or [0]), dtype), backend="reference"))
        parameters[-1].grad = None if gradient is None else np.array(gradient, dtype)
    return parameters


def test_norm_is_over_all_gradients_and_scales_them_alike():
    ps = with_gradients([3.0, 0.0], None, [-4.0])
    assert clip_grad_norm(ps, 1.0) == 5.0
    np.testing.assert_allclose(ps[0].grad, [0.6, 0.0], rtol=1e-15)
    np.testing.assert_allclose(ps[2].grad, [-0.8], rtol=1e-15)
    assert ps[1].grad is None
    assert clip_grad_norm(ps, 2.0) == pytest.approx(1.0)


@pytest.mark.parametrize("bound", [5.0, 6, math.inf])
def test_a_norm_within_the_bound_changes_nothing(bound):
    ps = with_gradients([3.0], [4.0])
    assert clip_grad_norm(iter(ps), bound) == 5.0
    assert [p.grad.tolist() for p in ps] == [[3], [4]]


def test_norm_is_taken_in_float64_and_gradients_keep_their_dtype():
    ps = with_gradients([2e19, 2e19], dtype=np.float32)  # whose squares float32 cannot hold
    assert clip_grad_norm(ps, 1.0) == pytest.approx(math.sqrt(2) * 2e19, rel=1e-7)
    assert ps[0].grad.dtype == np.float32
    np.testing.assert_allclose(ps[0].grad, math.sqrt(0.5), rtol=1e-6)


def test_tensors_that_share_a_gradients_array_are_scaled_once():
    a, b = (Parameter(np.zeros(1), backend="reference") for _ in range(2))
    (a + b).backward(np.array([10.0]))
    clip_grad_norm([a, b], math.sqrt(2))
    np.testing.assert_allclose([a.grad[0], b.grad[0]], 1.0)


def test_no_gradient_at_all_has_norm_zero():
    assert clip_grad_norm(with_gradients(None), 1.0) == 0.0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_norm_that_is_not_finite_is_an_error_and_changes_nothing(bad):
    ps = with_gradients([3.0], [1.0, bad])
    with pytest.raises(AnomalyError, match=r"from 1 of 2 gradients \(numbers 1\)"):
        clip_grad_norm(ps, 1.0)
    assert ps[0].grad.tolist() == [3]


def test_values_are_held_between_bounds():
    ps = with_gradients([-3.0, 0.5, 3.0], None)
    clip_grad_value(ps, 1)
    assert ps[0].grad.tolist() == [-1, 0.5, 1]


@pytest.mark.parametrize("clip", [clip_grad_norm, clip_grad_value])
@pytest.mark.parametrize("bound", [0, -1.0, math.nan, "1", None, True])
def test_bounds_that_make_no_sense(clip, bound):
    with pytest.raises(ConfigError, match="must be a number above 0"):
        clip(with_gradients([1.0]), bound)


@pytest.mark.parametrize("what", [Linear(1, 1, rng=0), Tensor(1.0), [Linear(1, 1, rng=0)], None])
def test_what_cannot_be_clipped(what):
    with pytest.raises(ConfigError, match="takes"):
        clip_grad_norm(what, 1.0)


# Losses


def test_losses_are_their_ops():
    rng = np.random.default_rng(0)
    x, y, labels = rng.standard_normal((4, 3)), rng.random((4, 3)), np.array([0, 2, 9, 1])
    t = Tensor(x, backend="reference")
    assert MSELoss()(t, y).item() == ops.mse(t, y).item() == pytest.approx(np.mean((x - y) ** 2))
    want = ops.cross_entropy(t, labels, ignore_index=9, label_smoothing=0.1).item()
    assert CrossEntropyLoss(ignore_index=9, label_smoothing=0.1)(t, labels).item() == want
    s = 1 / (1 + np.exp(-x))
    assert BCEWithLogitsLoss()(t, y).item() == pytest.approx(-np.mean(y * np.log(s) + (1 - y) * np.log(1 - s)))


def test_losses_take_arrays_and_show_their_options():
    assert MSELoss()(np.ones(2, np.float32), [1.0, 3.0]).item() == 2.0
    assert repr(CrossEntropyLoss(ignore_index=-1)) == "CrossEntropyLoss(ignore_index=-1, label_smoothing=0.0)"
    assert list(CrossEntropyLoss().parameters()) == []


@pytest.mark.parametrize(
    "options", [{"label_smoothing": 1.0}, {"label_smoothing": -0.1}, {"label_smoothing": math.nan}, {"ignore_index": 0.5}]
)
def test_loss_options_are_checked_when_they_are_given(options):
    with pytest.raises(ConfigError):
        CrossEntropyLoss(**options)


def test_losses_refuse_shapes_that_only_broadcast():
    with pytest.raises(ShapeError):
        MSELoss()(np.ones((2, 1), np.float32), np.ones(2))
