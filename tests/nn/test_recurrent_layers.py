import numpy as np
import pytest

from loratk.autograd import Tensor, no_grad
from loratk.errors import ConfigError, ShapeError, UnknownNameError
from loratk.nn import GRU, LSTM, RNN


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def weights(layer):
    state = layer.state_dict()
    return state["ih.weight"], state["ih.bias"], state["hh.weight"], state["hh.bias"] if isinstance(layer, GRU) else None


def rnn(layer, x, h, function=np.tanh):
    w, b, u, _ = weights(layer)
    out = []
    for i in range(x.shape[1]):
        h = function(x[:, i] @ w + h @ u + b)
        out.append(h)
    return np.stack(out, 1)


def gru(layer, x, h):
    w, b, u, bu = weights(layer)
    out = []
    for i in range(x.shape[1]):
        xr, xz, xc = np.split(x[:, i] @ w + b, 3, -1)
        hr, hz, hc = np.split(h @ u + bu, 3, -1)
        r, z = sigmoid(xr + hr), sigmoid(xz + hz)
        h = (1 - z) * np.tanh(xc + r * hc) + z * h
        out.append(h)
    return np.stack(out, 1)


def lstm(layer, x, h, c):
    w, b, u, _ = weights(layer)
    out = []
    for t in range(x.shape[1]):
        i, f, g, o = np.split(x[:, t] @ w + h @ u + b, 4, -1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        out.append(h)
    return np.stack(out, 1), c


@pytest.mark.parametrize("t", [1, 2, 5, 8])
def test_rnn_is_its_recurrence(t, backend, rng):
    layer = RNN(3, 4, rng=0, dtype=np.float64).to(backend)
    x, h = rng.standard_normal((2, t, 3)), rng.standard_normal((2, 4))
    y, last = layer(x, h)
    want = rnn(layer, x, h)
    np.testing.assert_allclose(y.numpy(), want, rtol=1e-12)
    np.testing.assert_allclose(last.numpy(), want[:, -1], rtol=1e-12)


def test_rnn_with_relu(rng):
    layer = RNN(3, 4, activation="relu", rng=0, dtype=np.float64)
    x = rng.standard_normal((2, 5, 3))
    np.testing.assert_allclose(layer(x)[0].numpy(), rnn(layer, x, np.zeros((2, 4)), lambda a: np.maximum(a, 0)))
    with pytest.raises(UnknownNameError, match=r"Unknown activation 'gelu' for an RNN. Activations: 'relu', 'tanh'"):
        RNN(3, 4, activation="gelu", rng=0)


def test_gru_is_its_recurrence(backend, rng):
    layer = GRU(3, 4, rng=0, dtype=np.float64).to(backend)
    x, h = rng.standard_normal((2, 5, 3)), rng.standard_normal((2, 4))
    y, last = layer(x, h)
    want = gru(layer, x, h)
    np.testing.assert_allclose(y.numpy(), want, rtol=1e-12)
    np.testing.assert_allclose(last.numpy(), want[:, -1], rtol=1e-12)


def test_lstm_is_its_recurrence(backend, rng):
    layer = LSTM(3, 4, rng=0, dtype=np.float64).to(backend)
    x, h, c = rng.standard_normal((2, 5, 3)), rng.standard_normal((2, 4)), rng.standard_normal((2, 4))
    y, (last, cell) = layer(x, (h, c))
    want, want_cell = lstm(layer, x, h, c)
    np.testing.assert_allclose(y.numpy(), want, rtol=1e-12)
    np.testing.assert_allclose(last.numpy(), want[:, -1], rtol=1e-12)
    np.testing.assert_allclose(cell.numpy(), want_cell, rtol=1e-12)


@pytest.mark.parametrize("kind", [RNN, GRU, LSTM])
def test_the_state_continues_a_sequence(kind, rng):
    layer, x = kind(3, 4, rng=0), rng.standard_normal((2, 6, 3)).astype(np.float32)
    whole, _ = layer(x)
    first, state = layer(x[:, :2])
    second, _ = layer(x[:, 2:], state)
    np.testing.assert_allclose(np.concatenate([first.numpy(), second.numpy()], 1), whole.numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", [RNN, GRU, LSTM])
def test_a_layer_without_biases_maps_zeros_to_zeros(kind):
    layer = kind(3, 4, bias=False, rng=0)
    assert not layer(np.zeros((2, 5, 3), np.float32))[0].numpy().any()
    assert sorted(layer.state_dict()) == ["hh.weight", "ih.weight"]


@pytest.mark.parametrize("kind", [RNN, GRU, LSTM])
def test_a_frozen_layer_gives_the_same_values(kind, rng):
    layer, x = kind(3, 4, rng=0, dtype=np.float64), rng.standard_normal((2, 6, 3))
    with no_grad():
        want = layer(x)[0].numpy()
        np.testing.assert_allclose(layer.freeze()(x)[0].numpy(), want, rtol=1e-12)


@pytest.mark.parametrize("kind", [RNN, GRU, LSTM])
def test_inputs_that_do_not_fit_are_refused(kind):
    layer = kind(3, 4, rng=0)
    for shape in ((2, 3), (2, 5, 2), (2, 0, 3)):
        with pytest.raises(ShapeError, match=rf"{kind.__name__} needs x \(batch, time of at least 1, 3\), found shape"):
            layer(np.zeros(shape, np.float32))
    wrong = np.zeros((2, 3), np.float32)
    with pytest.raises(ShapeError, match=rf"The state of this {kind.__name__} must be \(2, 4\), found shape \(2, 3\)"):
        layer(np.zeros((2, 5, 3), np.float32), (wrong, wrong) if kind is LSTM else wrong)
    with pytest.raises(ConfigError, match="h must be a positive integer"):
        kind(3, 0, rng=0)


def test_the_state_of_an_lstm_is_a_pair():
    with pytest.raises(ShapeError, match=r"a pair \(h, c\), found Tensor"):
        LSTM(3, 4, rng=0)(np.zeros((2, 5, 3), np.float32), Tensor(np.zeros((2, 4), np.float32)))


def test_long_sequences_train(rng):
    layer = LSTM(2, 3, rng=0)
    y, _ = layer(rng.standard_normal((1, 300, 2)).astype(np.float32))
    y.sum().backward()
    assert all(np.isfinite(parameter.grad).all() for parameter in layer.parameters())


def test_layers_show_their_sizes():
    assert repr(LSTM(3, 4, rng=0)).startswith("LSTM(3, 4\n  (ih): Linear(3, 16, bias=True)\n  (hh): Linear(4, 16, bias=False)")
    assert repr(RNN(3, 4, rng=0)).startswith("RNN(3, 4, activation='tanh'\n")
