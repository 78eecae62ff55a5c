"""Layers against PyTorch's, values and gradients, in float64."""

import numpy as np
import pytest

from loratk import nn
from loratk.autograd import Tensor

torch = pytest.importorskip("torch", reason="compares with PyTorch where it is installed")

CLOSE = {"rtol": 1e-9, "atol": 1e-10}


@pytest.fixture(params=["reference", "cpu"])
def backend(request):
    return request.param


@pytest.fixture
def rng():
    return np.random.default_rng(11)


def fill(module, rng):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.from_numpy(rng.standard_normal(tuple(parameter.shape)) * 0.5))
    return module.double()


def array(tensor):
    return tensor.detach().numpy()


def compare(layer, peer, inputs, pairs, *, backend, channels=False, options=None, peer_options=None, take=lambda y: y):
    """Outputs, input gradients and parameter gradients. `pairs`: our parameter's name -> their gradient in our layout."""
    layer.to(backend)
    ours = [Tensor(x, requires_grad=True, backend=backend) for x in inputs]
    theirs = [torch.tensor(np.moveaxis(x, -1, 1) if channels else x, requires_grad=True) for x in inputs]
    got, want = take(layer(*ours, **(options or {}))), take(peer(*theirs, **(peer_options or {})))
    want_values = np.moveaxis(array(want), 1, -1) if channels else array(want)
    np.testing.assert_allclose(got.numpy(), want_values, **CLOSE)
    probe = np.random.default_rng(5).standard_normal(got.shape)
    (got * probe).sum().backward()
    (want * torch.from_numpy(np.moveaxis(probe, -1, 1) if channels else probe)).sum().backward()
    for mine, other in zip(ours, theirs, strict=True):
        want_grad = np.moveaxis(array(other.grad), 1, -1) if channels else array(other.grad)
        np.testing.assert_allclose(mine.grad, want_grad, **CLOSE)
    parameters = dict(layer.named_parameters())
    assert parameters.keys() == pairs.keys()
    for name, gradient in pairs.items():
        np.testing.assert_allclose(parameters[name].grad, gradient(), **CLOSE, err_msg=name)


@pytest.mark.parametrize(
    "place",
    [{}, {"stride": 2, "padding": 1}, {"dilation": (2, 1), "padding": (0, 2)}, {"stride": (1, 3), "dilation": 2, "padding": 2}],
    ids=str,
)
def test_conv2d(place, backend, rng):
    peer = fill(torch.nn.Conv2d(3, 4, (3, 2), **place), rng)
    layer = nn.Conv2d.from_arrays(array(peer.weight).transpose(2, 3, 1, 0), array(peer.bias), **place)
    pairs = {"weight": lambda: array(peer.weight.grad).transpose(2, 3, 1, 0), "bias": lambda: array(peer.bias.grad)}
    compare(layer, peer, [rng.standard_normal((2, 9, 8, 3))], pairs, backend=backend, channels=True)


@pytest.mark.parametrize(("kernel", "stride"), [(2, None), ((3, 2), (1, 2))])
@pytest.mark.parametrize(("kind", "peer_kind"), [(nn.MaxPool2d, torch.nn.MaxPool2d), (nn.AvgPool2d, torch.nn.AvgPool2d)])
def test_pools(kind, peer_kind, kernel, stride, backend, rng):
    layer, peer = kind(kernel, stride=stride), peer_kind(kernel, stride=stride)
    compare(layer, peer, [rng.standard_normal((2, 9, 8, 3))], {}, backend=backend, channels=True)


def copy_norm(layer, peer):
    layer.weight.assign(array(peer.weight))
    layer.bias.assign(array(peer.bias))
    return {"weight": lambda: array(peer.weight.grad), "bias": lambda: array(peer.bias.grad)}


def test_layer_norm(backend, rng):
    peer, layer = fill(torch.nn.LayerNorm(5, eps=1e-3), rng), nn.LayerNorm(5, eps=1e-3, dtype=np.float64)
    compare(layer, peer, [3 + rng.standard_normal((2, 4, 5))], copy_norm(layer, peer), backend=backend)


def test_rms_norm(backend, rng):
    peer, layer = fill(torch.nn.RMSNorm(5, eps=1e-3), rng), nn.RMSNorm(5, eps=1e-3, dtype=np.float64)
    layer.weight.assign(array(peer.weight))
    compare(layer, peer, [3 + rng.standard_normal((2, 4, 5))], {"weight": lambda: array(peer.weight.grad)}, backend=backend)


@pytest.mark.parametrize("images", [False, True])
def test_batch_norm_in_training_and_evaluation(images, backend, rng):
    peer = fill((torch.nn.BatchNorm2d if images else torch.nn.BatchNorm1d)(3, eps=1e-3, momentum=0.3), rng)
    layer = nn.BatchNorm(3, eps=1e-3, momentum=0.3, dtype=np.float64)
    pairs, shape = copy_norm(layer, peer), (2, 4, 5, 3) if images else (6, 3)
    for _ in range(2):
        layer.zero_grad()
        peer.zero_grad()
        compare(layer, peer, [2 + rng.standard_normal(shape)], pairs, backend=backend, channels=images)
        np.testing.assert_allclose(layer.running_mean.numpy(), array(peer.running_mean), **CLOSE)
        np.testing.assert_allclose(layer.running_var.numpy(), array(peer.running_var), **CLOSE)
    layer.eval().zero_grad()
    peer.eval().zero_grad()
    compare(layer, peer, [2 + rng.standard_normal(shape)], pairs, backend=backend, channels=images)


def take_linear(linear, weight, bias):
    """Give a linear layer the values of a PyTorch weight (k, d) and bias; how to read their gradients."""
    linear.weight.assign(array(weight).T)
    linear.bias.assign(array(bias))
    return {"weight": lambda: array(weight.grad).T, "bias": lambda: array(bias.grad)}


def under(prefix, pairs):
    return {f"{prefix}.{name}": gradient for name, gradient in pairs.items()}


def take_attention(layer, peer):
    return under("qkv", take_linear(layer.qkv, peer.in_proj_weight, peer.in_proj_bias)) | under(
        "out", take_linear(layer.out, peer.out_proj.weight, peer.out_proj.bias)
    )


@pytest.mark.parametrize("causal", [False, True])
def test_self_attention(causal, backend, rng):
    peer = fill(torch.nn.MultiheadAttention(8, 2, batch_first=True), rng)
    layer = nn.MultiHeadAttention(8, 2, causal=causal, rng=0, dtype=np.float64)
    padding = np.array([[False] * 5, [False, False, False, True, True]])
    mask = torch.from_numpy(~np.tri(5, dtype=bool)) if causal else None
    compare(
        layer,
        lambda x: peer(x, x, x, key_padding_mask=torch.from_numpy(padding), attn_mask=mask, need_weights=False)[0],
        [rng.standard_normal((2, 5, 8))],
        take_attention(layer, peer),
        backend=backend,
        options={"padding": padding},
    )


def test_attention_over_a_memory(backend, rng):
    peer = fill(torch.nn.MultiheadAttention(8, 2, batch_first=True), rng)
    layer = nn.MultiHeadAttention(8, 2, cross=True, rng=0, dtype=np.float64)
    w, b = peer.in_proj_weight, peer.in_proj_bias
    layer.q.weight.assign(array(w)[:8].T)
    layer.q.bias.assign(array(b)[:8])
    layer.kv.weight.assign(array(w)[8:].T)
    layer.kv.bias.assign(array(b)[8:])
    pairs = {
        "q.weight": lambda: array(w.grad)[:8].T,
        "q.bias": lambda: array(b.grad)[:8],
        "kv.weight": lambda: array(w.grad)[8:].T,
        "kv.bias": lambda: array(b.grad)[8:],
    } | under("out", take_linear(layer.out, peer.out_proj.weight, peer.out_proj.bias))
    inputs = [rng.standard_normal((2, 5, 8)), rng.standard_normal((2, 3, 8))]
    compare(layer, lambda x, memory: peer(x, memory, memory, need_weights=False)[0], inputs, pairs, backend=backend)


@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("pre_norm", [False, True])
def test_transformer_encoder_layer(pre_norm, activation, backend, rng):
    peer = torch.nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, activation=activation, batch_first=True, norm_first=pre_norm)
    fill(peer, rng)
    layer = nn.TransformerEncoderLayer(8, 2, 12, pre_norm=pre_norm, activation=activation, rng=0, dtype=np.float64)
    pairs = (
        under("attention", take_attention(layer.attention, peer.self_attn))
        | under("norm1", copy_norm(layer.norm1, peer.norm1))
        | under("norm2", copy_norm(layer.norm2, peer.norm2))
        | under("feed_forward.up", take_linear(layer.feed_forward.up, peer.linear1.weight, peer.linear1.bias))
        | under("feed_forward.down", take_linear(layer.feed_forward.down, peer.linear2.weight, peer.linear2.bias))
    )
    compare(layer, peer, [rng.standard_normal((2, 5, 8))], pairs, backend=backend)


@pytest.mark.parametrize(
    ("kind", "peer_kind"), [(nn.RNN, torch.nn.RNN), (nn.GRU, torch.nn.GRU), (nn.LSTM, torch.nn.LSTM)], ids=["RNN", "GRU", "LSTM"]
)
def test_recurrent_layers(kind, peer_kind, backend, rng):
    peer, layer = fill(peer_kind(3, 4, batch_first=True), rng), kind(3, 4, rng=0, dtype=np.float64)
    w, b, u, c = peer.weight_ih_l0, peer.bias_ih_l0, peer.weight_hh_l0, peer.bias_hh_l0
    if kind is nn.GRU:
        pairs = under("ih", take_linear(layer.ih, w, b)) | under("hh", take_linear(layer.hh, u, c))
    else:  # their two biases are one
        pairs = under("ih", take_linear(layer.ih, w, b))
        layer.ih.bias.assign(array(b) + array(c))
        layer.hh.weight.assign(array(u).T)
        pairs["hh.weight"] = lambda: array(u.grad).T
    compare(layer, peer, [rng.standard_normal((2, 6, 3))], pairs, backend=backend, take=lambda result: result[0])
    x, state = rng.standard_normal((2, 3, 3)), [rng.standard_normal((2, 4)) for _ in range(2)]
    ours, theirs = (
        (state, [torch.from_numpy(part)[None] for part in state]) if kind is nn.LSTM else (state[0], torch.from_numpy(state[0])[None])
    )
    _, got = layer(x if backend == "cpu" else Tensor(x, backend=backend), ours)
    _, want = peer(torch.from_numpy(x), theirs)
    for mine, other in zip(got if kind is nn.LSTM else [got], want if kind is nn.LSTM else [want], strict=True):
        np.testing.assert_allclose(mine.numpy(), array(other)[0], **CLOSE)
