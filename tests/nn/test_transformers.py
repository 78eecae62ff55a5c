import numpy as np
import pytest

from loratk.autograd import no_grad
from loratk.errors import ConfigError, ShapeError, UnknownNameError
from loratk.nn import FeedForward, PositionalEncoding, Transformer, TransformerDecoderLayer, TransformerEncoderLayer


def draw(module, rng):
    for parameter in module.parameters():
        parameter.assign(rng.standard_normal(parameter.shape).astype(parameter.dtype))
    return module


def test_feed_forward_is_two_products_with_an_activation_between(backend, rng):
    layer, x = FeedForward(3, 5, rng=0, dtype=np.float64).to(backend), rng.standard_normal((2, 4, 3))
    w = layer.state_dict()
    want = np.maximum(x @ w["up.weight"] + w["up.bias"], 0) @ w["down.weight"] + w["down.bias"]
    np.testing.assert_allclose(layer(x).numpy(), want, rtol=1e-12, atol=1e-12)
    with pytest.raises(UnknownNameError, match="Unknown activation 'swish'"):
        FeedForward(3, 5, activation="swish", rng=0)


@pytest.mark.parametrize("pre_norm", [False, True])
def test_an_encoder_layer_joins_its_parts(pre_norm, backend, rng):
    layer = draw(TransformerEncoderLayer(6, 2, 8, pre_norm=pre_norm, rng=0, dtype=np.float64), rng).to(backend)
    x = layer.input(rng.standard_normal((2, 4, 6)))
    if pre_norm:
        h = x + layer.attention(layer.norm1(x))
        want = h + layer.feed_forward(layer.norm2(h))
    else:
        h = layer.norm1(x + layer.attention(x))
        want = layer.norm2(h + layer.feed_forward(h))
    np.testing.assert_allclose(layer(x).numpy(), want.numpy(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("pre_norm", [False, True])
def test_a_decoder_layer_joins_its_parts(pre_norm, backend, rng):
    layer = draw(TransformerDecoderLayer(6, 2, 8, pre_norm=pre_norm, rng=0, dtype=np.float64), rng).to(backend)
    x, memory = (layer.input(rng.standard_normal((2, t, 6))) for t in (4, 3))
    if pre_norm:
        h = x + layer.attention(layer.norm1(x))
        h = h + layer.cross_attention(layer.norm2(h), memory)
        want = h + layer.feed_forward(layer.norm3(h))
    else:
        h = layer.norm1(x + layer.attention(x))
        h = layer.norm2(h + layer.cross_attention(h, memory))
        want = layer.norm3(h + layer.feed_forward(h))
    np.testing.assert_allclose(layer(x, memory).numpy(), want.numpy(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("pre_norm", [False, True])
def test_dropout_falls_on_the_parts_of_a_layer_too(pre_norm, rng):
    layer, x = TransformerEncoderLayer(6, 2, 8, pre_norm=pre_norm, dropout=0.5, rng=0), rng.standard_normal((2, 4, 6)).astype(np.float32)
    layer.attention.eval()
    layer.feed_forward.eval()
    assert not np.array_equal(layer(x).numpy(), layer(x).numpy())
    layer.eval()
    np.testing.assert_array_equal(layer(x).numpy(), layer(x).numpy())


def test_a_decoder_does_not_look_ahead_but_sees_the_whole_memory(rng):
    layer = draw(TransformerDecoderLayer(6, 2, 8, rng=0), rng)
    x, memory = (rng.standard_normal((1, 4, 6)).astype(np.float32) for _ in range(2))
    want = layer(x, memory).numpy()
    later = x.copy()
    later[0, 3] += 1
    np.testing.assert_array_equal(layer(later, memory).numpy()[0, :3], want[0, :3])
    memory[0, 3] += 1
    assert not np.allclose(layer(x, memory).numpy()[0, 0], want[0, 0])


@pytest.mark.parametrize("pre_norm", [False, True])
def test_a_transformer_decodes_what_it_encoded(pre_norm, rng):
    net = draw(Transformer(6, 2, 8, layers=2, pre_norm=pre_norm, rng=0, dtype=np.float64), rng)
    source, target = rng.standard_normal((2, 4, 6)), rng.standard_normal((2, 3, 6))
    memory = source
    for layer in net.encoder:
        memory = layer(memory)
    memory = net.encoder_norm(memory) if pre_norm else memory
    want = target
    for layer in net.decoder:
        want = layer(want, memory)
    want = net.decoder_norm(want) if pre_norm else want
    np.testing.assert_allclose(net(source, target).numpy(), want.numpy())
    assert len(net.encoder) == len(net.decoder) == 2
    with pytest.raises(ConfigError, match="layers must be a positive integer"):
        Transformer(6, 2, 8, layers=0, rng=0)


def test_a_transformer_ignores_the_padding_of_source_and_target(rng):
    net = draw(Transformer(6, 2, 8, layers=2, rng=0, dtype=np.float64), rng)
    source, target = rng.standard_normal((2, 4, 6)), rng.standard_normal((2, 3, 6))
    masks = {"source_padding": np.zeros((2, 4), bool), "target_padding": np.zeros((2, 3), bool)}
    masks["source_padding"][:, 3] = masks["target_padding"][:, 2] = True
    want = net(source, target, **masks).numpy()[:, :2]
    source[:, 3], target[:, 2] = 9, -9
    np.testing.assert_array_equal(net(source, target, **masks).numpy()[:, :2], want)


def test_layers_of_one_stack_differ():
    net = Transformer(6, 2, 8, layers=2, rng=0)
    assert not np.array_equal(net.encoder[0].attention.out.weight.numpy(), net.encoder[1].attention.out.weight.numpy())


@pytest.mark.parametrize("d", [6, 5])
def test_positions_are_sines_and_cosines(d, backend, rng):
    x = rng.standard_normal((2, 7, d))
    layer = PositionalEncoding(d)
    got = layer(x).numpy() - x
    for i in range(7):
        for j in range(d):
            angle = i / 10000 ** (2 * (j // 2) / d)
            assert got[0, i, j] == pytest.approx(np.cos(angle) if j % 2 else np.sin(angle), abs=1e-12)


def test_positions_grow_with_the_sequence_and_are_not_stored(rng):
    layer = PositionalEncoding(4)
    short, long = layer(np.zeros((3, 4), np.float32)), layer(np.zeros((1, 9, 4), np.float32))
    assert long.dtype == np.float32
    np.testing.assert_array_equal(long.numpy()[0, :3], short.numpy())
    assert layer.state_dict() == {}
    with pytest.raises(ShapeError, match=r"PositionalEncoding needs x \(\.\.\., time, 4\), found shape \(3, 5\)"):
        layer(np.zeros((3, 5)))


def test_a_frozen_network_gives_the_same_values(rng):
    net, x = TransformerEncoderLayer(6, 2, 8, rng=0, dtype=np.float64), rng.standard_normal((2, 4, 6))
    with no_grad():
        want = net(x).numpy()
        np.testing.assert_allclose(net.freeze()(x).numpy(), want, rtol=1e-12)
