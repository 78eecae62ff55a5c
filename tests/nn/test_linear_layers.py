import numpy as np
import pytest

from loratk.autograd import Tensor
from loratk.errors import ConfigError, DtypeError, ShapeError
from loratk.nn import Embedding, Linear


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("shape", [(4,), (3, 4), (2, 3, 4), (0, 4)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_linear_is_a_product_plus_a_bias(shape, dtype, frozen, backend, rng):
    w, b, x = (rng.standard_normal(s).astype(dtype) for s in ((4, 3), (3,), shape))
    layer = Linear.from_arrays(w, b, backend=backend)
    if frozen:
        layer.freeze()
    got = layer(x)
    assert got.dtype == dtype
    np.testing.assert_allclose(
        got.numpy(), x @ w + b, rtol=1e-5 if dtype == np.float32 else 1e-12, atol=1e-5 if dtype == np.float32 else 1e-12
    )


def test_linear_without_a_bias_is_the_product(rng):
    w = rng.standard_normal((4, 3))
    layer = Linear.from_arrays(w)
    assert layer.bias is None
    assert list(layer.state_dict()) == ["weight"]
    np.testing.assert_allclose(layer(np.eye(4)).numpy(), w)


def test_a_frozen_layer_passes_the_gradient_on(rng):
    layer = Linear(4, 3, rng=0, dtype=np.float64).freeze()
    x = Tensor(rng.standard_normal((2, 4)), requires_grad=True)
    layer(x).sum().backward()
    np.testing.assert_allclose(x.grad, np.ones((2, 3)) @ layer.weight.numpy().T)
    assert layer.weight.grad is None
    assert layer.bias.grad is None


@pytest.mark.parametrize("frozen", [False, True])
def test_apply_matrix_puts_another_matrix_in_place_of_the_weight(frozen, backend, rng):
    layer, x, m = Linear(4, 3, rng=0, dtype=np.float64).to(backend), rng.standard_normal((2, 4)), rng.standard_normal((4, 2))
    m = Linear.from_arrays(m, backend=backend)
    got = layer.apply_matrix(layer.input(x), m.freeze().weight.handle() if frozen else m.weight)
    np.testing.assert_allclose(got.numpy(), x @ m.weight.numpy())
    np.testing.assert_allclose(layer.product(layer.input(x)).numpy(), x @ layer.weight.numpy())


def test_arrays_are_copied(rng):
    w = rng.standard_normal((4, 3))
    layer = Linear.from_arrays(w)
    w[:] = 0
    assert np.abs(layer.weight.numpy()).min() > 0


@pytest.mark.parametrize(
    ("weight", "bias", "error", "message"),
    [
        (np.ones(3), None, ShapeError, r"weight must have 2 axes \(d, k\), none of them empty, found shape \(3,\)"),
        (np.ones((0, 3)), None, ShapeError, r"none of them empty, found shape \(0, 3\)"),
        (np.ones((2, 3), int), None, DtypeError, "weight must be float32 or float64, found int64; convert it with astype"),
        (np.ones((2, 3)), np.ones(2), ShapeError, r"bias must be \(3,\), as the weight is \(2, 3\), found shape \(2,\)"),
        (np.ones((2, 3)), np.ones(3, np.float32), DtypeError, "bias must have the weight's dtype float64, found float32"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(weight, bias, error, message):
    with pytest.raises(error, match=message):
        Linear.from_arrays(weight, bias)


@pytest.mark.parametrize("size", [0, -1, 2.0, True, None, "3"])
def test_sizes_are_positive_integers(size):
    with pytest.raises(ConfigError, match="d must be a positive integer, found"):
        Linear(size, 2, rng=0)


@pytest.mark.parametrize("frozen", [False, True])
def test_input_that_does_not_fit_is_refused(frozen, rng):
    layer = Linear(4, 3, rng=0)
    if frozen:
        layer.freeze()
    with pytest.raises(ShapeError, match=r"last axis of x \(2, 5\) must have size 4"):
        layer(np.ones((2, 5), np.float32))
    with pytest.raises(DtypeError, match="nothing is converted silently"):
        layer(np.ones((2, 4)))


def test_a_draw_stays_within_its_bound():
    layer = Linear(100, 50, rng=0)
    for got in (layer.weight.numpy(), layer.bias.numpy()):
        assert np.abs(got).max() <= 0.1
        assert got.std() == pytest.approx(0.1 / 3**0.5, rel=0.15)


@pytest.mark.parametrize("frozen", [False, True])
def test_embedding_takes_rows_by_number(frozen, backend, rng):
    table = rng.standard_normal((5, 3))
    layer = Embedding.from_array(table, backend=backend)
    if frozen:
        layer.freeze()
    index = np.array([[0, 4, 4], [1, 2, 0]])
    np.testing.assert_array_equal(layer(index).numpy(), table[index])


@pytest.mark.parametrize("frozen", [False, True])
def test_embedding_apply_matrix_takes_rows_of_another_matrix(frozen, backend, rng):
    layer, other = Embedding(5, 3, rng=0).to(backend), Embedding.from_array(rng.standard_normal((5, 2)), backend=backend)
    m = other.freeze().weight.handle() if frozen else other.weight
    index = np.array([3, 0, 3])
    np.testing.assert_array_equal(layer.apply_matrix(index, m).numpy(), other.weight.numpy()[index])


def test_embedding_refuses_numbers_it_has_no_row_for():
    layer = Embedding(5, 3, rng=0)
    with pytest.raises(ShapeError, match="row numbers from 0 to 4, found 1 to 5"):
        layer([1, 5])
    with pytest.raises(DtypeError, match="integer row numbers, found dtype float64"):
        layer([1.0])
