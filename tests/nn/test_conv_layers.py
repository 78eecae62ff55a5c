import numpy as np
import pytest

from loratk.autograd import Tensor
from loratk.errors import ConfigError, DtypeError, ShapeError
from loratk.nn import AvgPool2d, Conv2d, Flatten, Linear, MaxPool2d, ReLU, Sequential

PLACES = [
    {},
    {"stride": 2},
    {"padding": (1, 2)},
    {"dilation": (2, 1)},
    {"stride": (2, 3), "padding": 1, "dilation": (1, 2)},
]


def both(value):
    return (value, value) if isinstance(value, int) else value


def convolve(x, w, b, stride=1, padding=0, dilation=1):
    """The definition, tap by tap."""
    (kh, kw, _, k), (sh, sw), (ph, pw), (dh, dw) = w.shape, both(stride), both(padding), both(dilation)
    x = np.pad(x, ((0, 0), (ph, ph), (pw, pw), (0, 0)))
    oh, ow = (x.shape[1] - dh * (kh - 1) - 1) // sh + 1, (x.shape[2] - dw * (kw - 1) - 1) // sw + 1
    y = np.zeros((len(x), oh, ow, k))
    for i in range(oh):
        for j in range(ow):
            for a in range(kh):
                for c in range(kw):
                    y[:, i, j] += x[:, i * sh + a * dh, j * sw + c * dw] @ w[a, c]
    return y + b


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("place", PLACES, ids=str)
def test_conv2d_is_a_sum_over_taps(place, frozen, backend, rng):
    w, b, x = rng.standard_normal((3, 2, 2, 4)), rng.standard_normal(4), rng.standard_normal((2, 7, 6, 2))
    layer = Conv2d.from_arrays(w, b, backend=backend, **place)
    if frozen:
        layer.freeze()
    np.testing.assert_allclose(layer(x).numpy(), convolve(x, w, b, **place), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("frozen", [False, True])
def test_apply_matrix_puts_another_matrix_in_place_of_the_weight(frozen, backend, rng):
    m, x = rng.standard_normal((3, 2, 2, 5)), rng.standard_normal((2, 7, 6, 2))
    layer = Conv2d(2, 4, (3, 2), stride=2, padding=1, rng=0, dtype=np.float64).to(backend)
    matrix = Linear.from_arrays(m.reshape(12, 5), backend=backend)
    got = layer.apply_matrix(layer.input(x), matrix.freeze().weight.handle() if frozen else matrix.weight)
    np.testing.assert_allclose(got.numpy(), convolve(x, m, 0, stride=2, padding=1), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(layer.product(layer.input(x)).numpy(), convolve(x, layer.weight.numpy(), 0, stride=2, padding=1))


def test_a_frozen_convolution_passes_the_gradient_on_and_keeps_none(rng):
    x = rng.standard_normal((2, 5, 5, 2))
    layer, grads = Conv2d(2, 3, 3, rng=0, dtype=np.float64), []
    for frozen in (False, True):
        if frozen:
            layer.zero_grad()
            layer.freeze()
        leaf = Tensor(x, requires_grad=True)
        layer(leaf).sum().backward()
        grads.append(leaf.grad)
    np.testing.assert_allclose(grads[1], grads[0])
    assert layer.weight.grad is None


def test_a_float32_network_of_images(rng):
    net = Sequential(Conv2d(1, 4, 3, padding=1, rng=0), ReLU(), MaxPool2d(2), Flatten(), Linear(64, 10, rng=1))
    y = net(rng.standard_normal((3, 8, 8, 1)).astype(np.float32))
    assert (y.shape, y.dtype) == ((3, 10), np.float32)
    y.sum().backward()
    assert all(parameter.grad.dtype == np.float32 for parameter in net.parameters())


@pytest.mark.parametrize(("kernel", "stride"), [(2, None), ((2, 3), None), (2, 1), ((3, 2), (1, 2))])
def test_pools_take_the_extreme_and_the_mean_of_each_window(kernel, stride, backend, rng):
    x = rng.standard_normal((2, 6, 7, 3))
    (kh, kw), (sh, sw) = both(kernel), both(stride or kernel)
    places = [(i, j) for i in range(0, 7 - kh, sh) for j in range(0, 8 - kw, sw)]
    windows = [x[:, i : i + kh, j : j + kw] for i, j in places]
    t = Tensor(x, backend=backend)
    for layer, reduce in ((MaxPool2d(kernel, stride=stride), np.max), (AvgPool2d(kernel, stride=stride), np.mean)):
        got = layer(t).numpy()
        want = np.stack([reduce(window, axis=(1, 2)) for window in windows], axis=1)
        np.testing.assert_allclose(got.reshape(2, -1, 3), want)


def test_flatten_makes_rows(rng):
    x = rng.standard_normal((2, 3, 4))
    np.testing.assert_array_equal(Flatten()(x).numpy(), x.reshape(2, 12))
    assert Flatten()(np.zeros((0, 3, 4))).shape == (0, 12)
    assert Flatten()(np.zeros(3)).shape == (3, 1)
    with pytest.raises(ShapeError, match="at least one axis"):
        Flatten()(1.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel": 0}, "kernel must be an integer of at least 1, or two of them, found 0"),
        ({"kernel": (1, 2, 3)}, "kernel must be"),
        ({"stride": 0}, "stride must be an integer of at least 1"),
        ({"padding": -1}, "padding must be an integer of at least 0"),
        ({"dilation": 0.5}, "dilation must be"),
        ({"c": 0}, "c must be a positive integer"),
        ({"k": 0}, "k must be a positive integer"),
    ],
)
def test_conv2d_refuses_bad_options(options, message):
    with pytest.raises(ConfigError, match=message):
        Conv2d(**{"c": 2, "k": 3, "kernel": 3, "rng": 0, **options})


@pytest.mark.parametrize("kind", [MaxPool2d, AvgPool2d])
def test_pools_refuse_bad_options(kind):
    with pytest.raises(ConfigError, match="kernel must be"):
        kind(0)
    with pytest.raises(ConfigError, match="stride must be"):
        kind(2, stride=0)
    with pytest.raises(ShapeError, match=r"needs x \(n, height, width, channels\), found shape \(3, 4\)"):
        kind(2)(np.zeros((3, 4)))


def test_conv2d_refuses_images_that_do_not_fit():
    layer = Conv2d(2, 3, 3, rng=0)
    with pytest.raises(ShapeError, match=r"Conv2d needs x \(n, height, width, 2\), channels last, found shape \(1, 2, 5, 5\)"):
        layer(np.zeros((1, 2, 5, 5), np.float32))
    with pytest.raises(ShapeError, match="A window of 3 does not fit an image"):
        layer(np.zeros((1, 2, 5, 2), np.float32))


def test_arrays_that_do_not_fit_are_refused():
    with pytest.raises(ShapeError, match=r"weight must have 4 axes \(kh, kw, c, k\)"):
        Conv2d.from_arrays(np.ones((3, 3, 2)))
    with pytest.raises(ShapeError, match=r"bias must be \(4,\)"):
        Conv2d.from_arrays(np.ones((3, 3, 2, 4)), np.ones(2))
    with pytest.raises(DtypeError, match="weight must be float32 or float64, found float16"):
        Conv2d.from_arrays(np.ones((3, 3, 2, 4), np.float16))


def test_layers_show_their_options():
    assert repr(Conv2d(2, 3, (3, 1), padding=(1, 0), rng=0)) == "Conv2d(2, 3, kernel=(3, 1), padding=(1, 0), bias=True)"
    assert repr(Conv2d(2, 3, 3, stride=2, dilation=2, bias=False, rng=0)) == (
        "Conv2d(2, 3, kernel=(3, 3), stride=(2, 2), dilation=(2, 2), bias=False)"
    )
    assert repr(MaxPool2d(2)) == "MaxPool2d(kernel=(2, 2), stride=(2, 2))"
