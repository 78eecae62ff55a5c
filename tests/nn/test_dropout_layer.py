import numpy as np
import pytest

from loratk.autograd import Tensor
from loratk.errors import ConfigError
from loratk.nn import Dropout, FeedForward, Sequential, TransformerEncoderLayer


def test_it_zeroes_the_share_p_and_keeps_the_mean(backend):
    x = Tensor(np.ones((200, 100)), backend=backend)
    got = Dropout(0.3, 0)(x).numpy()
    kept = got != 0
    assert kept.mean() == pytest.approx(0.7, abs=0.01)
    np.testing.assert_allclose(got[kept], 1 / 0.7)


def test_the_gradient_passes_where_the_value_did():
    x = Tensor(np.ones((20, 10)), requires_grad=True)
    y = Dropout(0.5, 0)(x)
    y.sum().backward()
    np.testing.assert_array_equal(x.grad, y.numpy())


def test_it_is_off_in_evaluation():
    x, layer = Tensor(np.ones((4, 4))), Dropout(0.5, 0).eval()
    state = layer.rng.bit_generator.state
    assert layer(x) is x
    assert layer.rng.bit_generator.state == state


def test_each_call_draws_anew_and_the_same_seed_draws_the_same():
    x, a, b = np.ones((10, 10)), Dropout(0.5, 3), Dropout(0.5, np.random.default_rng(3))
    first, second = a(x).numpy(), a(x).numpy()
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(b(x).numpy(), first)
    np.testing.assert_array_equal(b(x).numpy(), second)


def test_restoring_the_generators_of_a_tree_repeats_its_masks(rng):
    net = TransformerEncoderLayer(8, 2, 8, dropout=0.5, rng=0)
    x = rng.standard_normal((2, 3, 8)).astype(np.float32)
    states = {name: g.bit_generator.state for name, g in net.generators().items()}
    assert set(states) == {"dropout.rng", "attention.dropout.rng", "feed_forward.dropout.rng"}
    want = net(x).numpy()
    assert not np.array_equal(net(x).numpy(), want)
    for name, g in net.generators().items():
        g.bit_generator.state = states[name]
    np.testing.assert_array_equal(net(x).numpy(), want)


def test_dropouts_inside_one_module_differ():
    net = TransformerEncoderLayer(8, 2, 8, dropout=0.5, rng=0)
    states = [str(g.bit_generator.state) for g in net.generators().values()]
    assert len(set(states)) == 3


def test_the_probability_does_not_change_the_weights():
    a, b = (FeedForward(4, 5, dropout=p, rng=0).state_dict() for p in (0.0, 0.5))
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])


@pytest.mark.parametrize("p", [1, 1.5, -0.1, np.nan, "0.5", True, None])
def test_a_probability_is_from_0_to_below_1(p):
    with pytest.raises(ConfigError, match=r"The dropout probability must be in \[0, 1\), found"):
        Dropout(p, 0)


def test_it_shows_its_probability():
    assert repr(Sequential(Dropout(0.25, 0))) == "Sequential(\n  (0): Dropout(p=0.25)\n)"
