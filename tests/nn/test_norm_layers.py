import numpy as np
import pytest

from loratk.autograd import Tensor, no_grad
from loratk.errors import ConfigError, DtypeError, ShapeError
from loratk.nn import BatchNorm, LayerNorm, RMSNorm


def filled(layer, rng):
    """The layer with weight and bias drawn, so that neither can be missed."""
    for parameter in layer.parameters():
        parameter.assign(rng.standard_normal(parameter.shape))
    return layer


@pytest.mark.parametrize("shape", [(4,), (3, 4), (2, 3, 4), (0, 4)])
def test_layer_norm_shifts_and_scales_each_row(shape, backend, rng):
    layer, x = filled(LayerNorm(4, eps=0.1, dtype=np.float64).to(backend), rng), 3 + rng.standard_normal(shape)
    mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    want = (x - mean) / np.sqrt(var + 0.1) * layer.weight.numpy() + layer.bias.numpy()
    np.testing.assert_allclose(layer(x).numpy(), want, rtol=1e-12, atol=1e-12)


def test_layer_norm_without_a_bias(rng):
    layer, x = LayerNorm(4, bias=False, dtype=np.float64), rng.standard_normal((3, 4))
    np.testing.assert_allclose(layer(x).numpy().mean(-1), 0, atol=1e-12)
    assert list(layer.state_dict()) == ["weight"]
    assert repr(layer) == "LayerNorm(4, eps=1e-05, bias=False)"


@pytest.mark.parametrize("shape", [(4,), (3, 4), (2, 3, 4), (0, 4)])
def test_rms_norm_divides_by_the_root_mean_square(shape, backend, rng):
    layer, x = filled(RMSNorm(4, eps=0.1, dtype=np.float64).to(backend), rng), 3 + rng.standard_normal(shape)
    want = x / np.sqrt((x**2).mean(-1, keepdims=True) + 0.1) * layer.weight.numpy()
    np.testing.assert_allclose(layer(x).numpy(), want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [(6, 3), (2, 5, 3), (2, 4, 5, 3)])
def test_batch_norm_in_training_uses_the_batch_and_tracks_it(shape, backend, rng):
    layer = filled(BatchNorm(3, eps=0.1, momentum=0.2, dtype=np.float64).to(backend), rng)
    weight, bias = layer.weight.numpy(), layer.bias.numpy()
    running_mean, running_var = np.zeros(3), np.ones(3)
    for _ in range(2):
        x = 3 + 2 * rng.standard_normal(shape)
        rows = x.reshape(-1, 3)
        want = (x - rows.mean(0)) / np.sqrt(rows.var(0) + 0.1) * weight + bias
        np.testing.assert_allclose(layer(x).numpy(), want, rtol=1e-12, atol=1e-12)
        running_mean = 0.8 * running_mean + 0.2 * rows.mean(0)
        running_var = 0.8 * running_var + 0.2 * rows.var(0, ddof=1)
        np.testing.assert_allclose(layer.running_mean.numpy(), running_mean)
        np.testing.assert_allclose(layer.running_var.numpy(), running_var)


def test_batch_norm_in_evaluation_uses_what_it_tracked_and_leaves_it(backend, rng):
    layer = filled(BatchNorm(3, eps=0.1, dtype=np.float64).to(backend), rng)
    layer(3 + rng.standard_normal((8, 3)))
    layer.eval()
    mean, var = layer.running_mean.numpy().copy(), layer.running_var.numpy().copy()
    x = rng.standard_normal((1, 3))
    want = (x - mean) / np.sqrt(var + 0.1) * layer.weight.numpy() + layer.bias.numpy()
    np.testing.assert_allclose(layer(x).numpy(), want)
    np.testing.assert_array_equal(layer.running_mean.numpy(), mean)
    np.testing.assert_array_equal(layer.running_var.numpy(), var)


def test_running_statistics_belong_to_no_graph_and_stay_in_the_state(rng):
    layer = BatchNorm(3)
    x = Tensor(rng.standard_normal((4, 3)).astype(np.float32), requires_grad=True)
    layer(x).sum().backward()
    assert layer.running_mean.grad is None
    assert layer.running_mean.dtype == np.float32
    with no_grad():
        layer(x)
    other = BatchNorm(3)
    other.load_state_dict(layer.state_dict())
    np.testing.assert_array_equal(other.running_var.numpy(), layer.running_var.numpy())


def test_batch_norm_is_stable_far_from_zero(rng):
    x = (rng.standard_normal((100, 2)) + 1e4).astype(np.float32)
    np.testing.assert_allclose(BatchNorm(2)(x).numpy().std(0), 1, rtol=1e-2)


@pytest.mark.parametrize("shape", [(3,), (4, 2), (4, 4)])
def test_batch_norm_refuses_what_does_not_fit(shape):
    with pytest.raises(ShapeError, match=r"BatchNorm needs x \(\.\.\., 3\) with at least two axes, found shape"):
        BatchNorm(3)(np.ones(shape, np.float32))


@pytest.mark.parametrize("shape", [(1, 3), (0, 3)])
def test_batch_norm_cannot_train_on_a_single_value(shape):
    with pytest.raises(ShapeError, match=r"at least two values a feature, found shape \(\d, 3\); use eval\(\)"):
        BatchNorm(3)(np.ones(shape, np.float32))


@pytest.mark.parametrize(("kind", "k"), [(LayerNorm, 3), (RMSNorm, 3)])
def test_row_norms_refuse_another_size(kind, k):
    with pytest.raises(ShapeError, match=r"the last axis of x \(2, 1\) must fit"):
        kind(k)(np.ones((2, 1), np.float32))


@pytest.mark.parametrize("kind", [LayerNorm, RMSNorm, BatchNorm])
def test_bad_options_are_refused(kind):
    for eps in (0, -1, np.nan, np.inf, "1", True):
        with pytest.raises(ConfigError, match="eps must be a finite number above 0, found"):
            kind(3, eps=eps)
    with pytest.raises(ConfigError, match="k must be a positive integer"):
        kind(0)
    with pytest.raises(DtypeError, match="dtype must be float32 or float64"):
        kind(3, dtype=int)


@pytest.mark.parametrize("momentum", [0, 1.5, np.nan])
def test_momentum_is_a_share(momentum):
    with pytest.raises(ConfigError, match="momentum must be"):
        BatchNorm(3, momentum=momentum)


def test_norms_show_their_options():
    assert repr(RMSNorm(4)) == "RMSNorm(4, eps=1e-06)"
    assert repr(BatchNorm(4, momentum=0.5)) == "BatchNorm(4, eps=1e-05, momentum=0.5)"


def test_which_norms_add_a_bias():
    assert LayerNorm.adds_bias
    assert BatchNorm.adds_bias
    assert not RMSNorm.adds_bias
