import numpy as np
import pytest

from loratk.autograd import Tensor, detect_anomaly
from loratk.errors import ConfigError, DtypeError, ShapeError
from loratk.nn import MultiHeadAttention, QKVProjection
from loratk.nn.attention import attend


def attention(q, k, v, allowed=None):
    """The definition, one query of one head at a time: (n, t, h, e), (n, s, g, e) twice, (n, t, s) -> (n, t, h, e)."""
    n, t, h, e = q.shape
    y = np.zeros(q.shape)
    for a in range(n):
        for i in range(t):
            for b in range(h):
                seen = np.arange(k.shape[1]) if allowed is None else np.flatnonzero(allowed[a, i])
                if len(seen):
                    group = b * k.shape[2] // h
                    weight = np.exp(k[a, seen, group] @ q[a, i, b] / np.sqrt(e))
                    y[a, i, b] = weight / weight.sum() @ v[a, seen, group]
    return y


def expected(layer, x, memory=None, allowed=None):
    state, size = layer.state_dict(), layer.d // layer.heads
    if memory is None:
        fused = x @ state["qkv.weight"] + state["qkv.bias"]
        q, k, v = (fused[..., slice(*layer.qkv.blocks[name])] for name in "qkv")
    else:
        q = x @ state["q.weight"] + state["q.bias"]
        k, v = np.split(memory @ state["kv.weight"] + state["kv.bias"], 2, axis=-1)
    heads = [part.reshape(*part.shape[:2], -1, size) for part in (q, k, v)]
    return attention(*heads, allowed).reshape(x.shape) @ state["out.weight"] + state["out.bias"]


@pytest.mark.parametrize("kv_heads", [None, 2, 1])
@pytest.mark.parametrize("causal", [False, True])
def test_self_attention_is_the_definition(causal, kv_heads, backend, rng):
    layer = MultiHeadAttention(8, 4, kv_heads=kv_heads, causal=causal, rng=0, dtype=np.float64).to(backend)
    x = rng.standard_normal((2, 5, 8))
    allowed = np.broadcast_to(np.tri(5, dtype=bool), (2, 5, 5)) if causal else None
    np.testing.assert_allclose(layer(x).numpy(), expected(layer, x, allowed=allowed), rtol=1e-10, atol=1e-12)


def test_attention_over_a_memory_is_the_definition(backend, rng):
    layer = MultiHeadAttention(8, 4, kv_heads=2, cross=True, rng=0, dtype=np.float64).to(backend)
    x, memory = rng.standard_normal((2, 5, 8)), rng.standard_normal((2, 3, 8))
    padding = np.array([[False, True, False], [False, False, False]])
    np.testing.assert_allclose(layer(x, memory).numpy(), expected(layer, x, memory), rtol=1e-10, atol=1e-12)
    want = expected(layer, x, memory, np.broadcast_to(~padding[:, None], (2, 5, 3)))
    np.testing.assert_allclose(layer(x, memory, padding=padding).numpy(), want, rtol=1e-10, atol=1e-12)


def test_causal_attention_with_padding_sees_what_both_allow(backend, rng):
    layer = MultiHeadAttention(6, 2, causal=True, rng=0, dtype=np.float64).to(backend)
    x, padding = rng.standard_normal((2, 4, 6)), np.array([[False, True, False, False], [True, False, False, True]])
    want = expected(layer, x, allowed=np.tri(4, dtype=bool) & ~padding[:, None])
    np.testing.assert_allclose(layer(x, padding=padding).numpy(), want, rtol=1e-10, atol=1e-12)


def test_nobody_sees_padding(backend, rng):
    layer = MultiHeadAttention(6, 2, rng=0).to(backend)
    x, padding = rng.standard_normal((2, 4, 6)).astype(np.float32), np.zeros((2, 4), bool)
    padding[0, 2:] = True
    want = layer(x, padding=padding).numpy()
    x[0, 2:] = 1e3
    got = layer(x, padding=padding).numpy()
    np.testing.assert_array_equal(got[0, :2], want[0, :2])
    np.testing.assert_array_equal(got[1], want[1])


def test_causal_attention_does_not_look_ahead(rng):
    layer = MultiHeadAttention(6, 2, causal=True, rng=0)
    x = rng.standard_normal((1, 4, 6)).astype(np.float32)
    want = layer(x).numpy()
    x[0, 3] = -7
    np.testing.assert_array_equal(layer(x).numpy()[0, :3], want[0, :3])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_query_that_sees_no_key_gets_zeros_and_passes_no_gradient(dtype, backend, rng):
    layer = MultiHeadAttention(6, 2, cross=True, rng=0, dtype=dtype).to(backend)
    x, memory = (Tensor(rng.standard_normal(s).astype(dtype), requires_grad=True, backend=backend) for s in ((2, 3, 6), (2, 4, 6)))
    padding = np.array([[True] * 4, [False] * 4])
    with detect_anomaly():
        y = layer(x, memory, padding=padding)
        y.sum().backward()
    np.testing.assert_array_equal(y.numpy()[0], np.broadcast_to(layer.out.bias.numpy(), (3, 6)))
    assert not x.grad[0].any()
    assert not memory.grad[0].any()
    assert memory.grad[1].any()


@pytest.mark.parametrize("score", [-1e37, -1e6, 1e6, 1e37])
def test_large_scores_neither_overflow_nor_leak_through_the_mask(score, backend):
    q, k, v = (np.array(values, np.float32).reshape(1, -1, 1, 1) for values in ([1], [score, 5], [2, 3]))
    got = attend(*(Tensor(part, backend=backend) for part in (q, k, v)), np.array([[[[True, False]]]]))
    assert got.item() == 2


def test_dropout_works_in_training_only(rng):
    layer, x = MultiHeadAttention(6, 2, dropout=0.5, rng=0), rng.standard_normal((1, 4, 6)).astype(np.float32)
    assert not np.array_equal(layer(x).numpy(), layer(x).numpy())
    layer.eval()
    np.testing.assert_array_equal(layer(x).numpy(), layer(x).numpy())


def test_a_replaced_projection_is_used(rng):
    layer, x = MultiHeadAttention(4, 2, rng=0), rng.standard_normal((1, 3, 4)).astype(np.float32)
    before = layer(x).numpy()
    layer.replace("qkv", QKVProjection(4, heads=2, rng=5))
    assert not np.allclose(layer(x).numpy(), before)


def test_a_frozen_layer_gives_the_same_values(backend, rng):
    layer, x = MultiHeadAttention(6, 2, rng=0, dtype=np.float64).to(backend), rng.standard_normal((2, 3, 6))
    want = layer(x).numpy()
    np.testing.assert_allclose(layer.freeze()(x).numpy(), want, rtol=1e-12)


def test_the_blocks_of_a_fused_projection():
    layer = QKVProjection(12, heads=6, kv_heads=2, rng=0)
    assert layer.weight.shape == (12, 20)
    assert layer.blocks == {"q": (0, 12), "k": (12, 16), "v": (16, 20)}
    assert QKVProjection(12, heads=3, rng=0).blocks == {"q": (0, 12), "k": (12, 24), "v": (24, 36)}
    assert repr(layer) == "QKVProjection(12, 20, heads=6, kv_heads=2, bias=True)"


@pytest.mark.parametrize("frozen", [False, True])
def test_the_projection_is_a_product_plus_a_bias(frozen, backend, rng):
    w, b, x, m = (rng.standard_normal(s) for s in ((4, 8), (8,), (2, 3, 4), (4, 2)))
    layer = QKVProjection.from_arrays(w, b, heads=2, kv_heads=1, backend=backend)
    if frozen:
        layer.freeze()
    np.testing.assert_allclose(layer(x).numpy(), x @ w + b)
    np.testing.assert_allclose(layer.product(layer.input(x)).numpy(), x @ w)
    np.testing.assert_allclose(layer.apply_matrix(layer.input(x), Tensor(m, backend=backend)).numpy(), x @ m)


def test_arrays_that_do_not_fit_the_heads_are_refused():
    with pytest.raises(ShapeError, match=r"weight must be \(4, 8\) for heads=2, kv_heads=1, found shape \(4, 12\)"):
        QKVProjection.from_arrays(np.ones((4, 12)), heads=2, kv_heads=1)
    with pytest.raises(ConfigError, match="the weight's first axis must be a multiple of heads, found 4 and 3"):
        QKVProjection.from_arrays(np.ones((4, 12)), heads=3)
    with pytest.raises(ShapeError, match=r"bias must be \(12,\)"):
        QKVProjection.from_arrays(np.ones((4, 12)), np.ones(4), heads=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 5}, "d must be a multiple of heads, found 8 and 5"),
        ({"heads": 0}, "heads must be a positive integer, found 0"),
        ({"kv_heads": 3}, "heads must be a multiple of kv_heads, found 4 and 3"),
        ({"d": 0}, "d must be a positive integer"),
        ({"causal": True, "cross": True}, "choose causal or cross, not both"),
        ({"dropout": 1.0}, "dropout probability"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        MultiHeadAttention(**{"d": 8, "heads": 4, "rng": 0, **options})


def test_inputs_that_do_not_fit_are_refused():
    x = np.zeros((2, 3, 4), np.float32)
    own, cross = MultiHeadAttention(4, 2, rng=0), MultiHeadAttention(4, 2, cross=True, rng=0)
    for attempt, error, message in [
        (lambda: own(x[0]), ShapeError, r"x must be \(batch, time, 4\), found shape \(3, 4\)"),
        (lambda: own(x, x), ShapeError, "takes no memory; build it with cross=True"),
        (lambda: cross(x), ShapeError, r"over a memory \(batch, time, 4\), found none"),
        (lambda: cross(x, x[:, :, :2]), ShapeError, r"memory must be \(batch, time, 4\), found shape \(2, 3, 2\)"),
        (lambda: cross(x, x[:1]), ShapeError, r"one batch size, found shapes \(2, 3, 4\) and \(1, 3, 4\)"),
        (lambda: own(x, padding=np.zeros((2, 4), bool)), ShapeError, r"padding must have the shape \(2, 3\) of the keys"),
        (lambda: own(x, padding=np.zeros((2, 3))), DtypeError, "padding must be boolean, True where nobody may look, found dtype float64"),
    ]:
        with pytest.raises(error, match=message):
            attempt()
