"""Tensors: what they hold, how they look, and what ops refuse."""

import numpy as np
import pytest

from loratk.autograd import Tensor, ops
from loratk.errors import BackendError, ConfigError, DtypeError, LoratkError, ShapeError
from loratk.kernels import Backend, get_backend

OTHER = Backend("other", get_backend("reference").kernels)


def tensor(array, backend="reference", **options):
    return Tensor(np.asarray(array), backend=backend, **options)


F32, F64 = tensor(np.ones((2, 3), np.float32)), tensor(np.ones((2, 3)))


# Making and looking


@pytest.mark.parametrize(
    ("data", "dtype", "shape"),
    [
        (1, "float32", ()),
        ([1, 2], "float32", (2,)),
        (True, "bool", ()),
        (np.float64(2), "float32", ()),  # a Python float too
        (np.arange(3), "int64", (3,)),
        (np.zeros((0, 2)), "float64", (0, 2)),
    ],
)
def test_dtype_and_shape_of_a_new_tensor(data, dtype, shape):
    got = Tensor(data, backend="reference")
    assert (got.dtype, got.shape, got.ndim, got.size) == (dtype, shape, len(shape), np.prod(shape))


@pytest.mark.parametrize("data", [np.ones(2, np.float16), np.ones(2, complex), "abc", None, np.array(["a"]), F32])
def test_what_a_tensor_cannot_hold(data):
    with pytest.raises(DtypeError):
        Tensor(data, backend="reference")


def test_integers_take_no_gradient():
    with pytest.raises(DtypeError, match="int64"):
        tensor([1, 2], requires_grad=True)


def test_repr_shows_values_dtype_and_where_it_comes_from():
    x = Tensor([1.0, 2.0], requires_grad=True, backend="reference")
    assert repr(x) == "Tensor([1., 2.], dtype=float32, requires_grad=True)"
    assert repr(x * 2) == "Tensor([2., 4.], dtype=float32, op='mul')"


def test_item_len_and_iteration():
    x = tensor([[1.0, 2.0], [3.0, 4.0]])
    assert len(x) == 2
    assert [row.numpy().tolist() for row in x] == [[1, 2], [3, 4]]
    assert float(x.sum()) == 10
    with pytest.raises(ShapeError, match=r"one entry, found shape \(2, 2\)"):
        x.item()
    with pytest.raises(ShapeError, match="no length"):
        len(tensor(1.0))


# Arithmetic


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_numbers_lists_and_arrays_stand_beside_tensors_on_either_side(dtype):
    x = tensor(np.array([1, 2], dtype))
    array = np.array([3, 4], dtype)
    for got, want in [
        (x + 1, [2, 3]),
        (1 - x, [0, -1]),
        (2 * x, [2, 4]),
        (2.0 / x, [2, 1]),
        (ops.add(x, [1, 2]), [2, 4]),
        (array + x, [4, 6]),
        (array - x, [2, 2]),
        (array * x, [3, 8]),
        (array / x, [3, 2]),
        (dtype(2) * x, [2, 4]),
        (x**2, [1, 4]),
        (-x, [-1, -2]),
        (np.ones((1, 2), dtype) @ x.reshape(2, 1), [[3]]),
    ]:
        assert isinstance(got, Tensor)
        assert got.dtype == dtype
        assert got.numpy().tolist() == want


def test_whole_numbers_stay_whole():
    x = tensor([1, 2])
    assert (x + 1).dtype == np.int64
    with pytest.raises(DtypeError, match="add got both int64 and float32"):
        x + 0.5


def test_shape_methods():
    x = tensor(np.arange(6.0).reshape(2, 3))
    assert x.reshape(3, -1).shape == x.reshape((3, 2)).shape == x.T.shape == x.transpose(1, 0).shape == (3, 2)
    assert x.mean(0).numpy().tolist() == [1.5, 2.5, 3.5]
    assert x.sum((0, 1), keepdims=True).shape == (1, 1)
    assert np.isnan(tensor(np.zeros(0)).mean().item())


# What ops refuse, in their own words


def lora(x, mask=None):
    handle = get_backend("reference").freeze_weight(np.ones((3, 2)))
    return ops.lora_linear(tensor(x), handle, np.ones((3, 1)), np.ones((1, 2)), mask, scaling=1.0)


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (lambda: tensor([1.0, 2.0, 3.0]) + tensor(np.ones(4)), ["add", "(3,)", "(4,)"]),
        (lambda: tensor(np.ones((2, 3))) * np.ones((3, 2)), ["mul", "(2, 3)", "(3, 2)"]),
        (lambda: ops.maximum(tensor(np.ones(2)), tensor(np.ones(3))), ["maximum", "(2,)", "(3,)"]),
        (lambda: ops.where(np.ones(2, bool), F64, 0.0), ["where", "(2,)", "(2, 3)"]),
        (lambda: F64 @ F64, ["matmul", "(2, 3)"]),
        (lambda: F64 @ np.ones(3), ["matmul", "(3,)", "second"]),
        (lambda: np.ones(2) @ F64, ["matmul", "(2,)", "first"]),
        (lambda: F64 @ 2.0, ["matmul", "()"]),
        (lambda: ops.linear(F64, tensor(np.ones((2, 3)))), ["linear", "(2, 3)"]),
        (lambda: F64.reshape(4), ["reshape", "(2, 3)", "(4,)"]),
        (lambda: F64.transpose(0), ["transpose", "(2, 3)", "(0,)"]),
        (lambda: F64[5], ["getitem", "(2, 3)", "5"]),
        (lambda: F64.sum(2), ["sum_over", "(2, 3)", "axis=2"]),
        (lambda: ops.max_over(tensor(np.ones((0, 2))), 0), ["max_over", "(0, 2)", "axis=0"]),
        (lambda: ops.concat([F64, tensor(np.ones((3, 3)))]), ["concat", "(2, 3)", "(3, 3)"]),
        (lambda: ops.broadcast_to(F64, (4, 3)), ["broadcast_to", "(2, 3)", "(4, 3)"]),
        (lambda: ops.mse(F64, np.ones(3)), ["mse", "(2, 3)", "(3,)"]),
        (lambda: ops.mse(tensor(np.ones((0, 2))), np.ones((0, 2))), ["mse", "(0, 2)"]),
        (lambda: ops.binary_cross_entropy(F64, np.ones(3)), ["binary_cross_entropy", "(2, 3)", "(3,)"]),
        (lambda: ops.binary_cross_entropy(tensor(np.ones(0)), np.ones(0)), ["binary_cross_entropy", "(0,)"]),
        (lambda: ops.cross_entropy(F64, np.array([0])), ["cross_entropy", "(2, 3)", "(1,)"]),
        (lambda: ops.cross_entropy(F64, np.array([0, 3])), ["cross_entropy", "0 to 2", "found 3"]),
        (lambda: ops.cross_entropy(F64, np.array([-100, -100])), ["all 2 labels are ignored"]),
        (lambda: ops.gather_rows(tensor(np.ones(3)), np.array([0])), ["gather_rows", "(3,)"]),
        (lambda: ops.sparse_matmul(F64, F64, np.array([0, 2]), 9), ["sparse_matmul", "(n, d)", "(2, 3), (2, 3) and (2,)"]),
        (lambda: ops.scatter(F64, np.array([0, 2]), 9), ["scatter", "of one length", "(2,)"]),
        (lambda: ops.gather_rows(F64, np.array([0, 2])), ["gather_rows", "0 to 1", "0 to 2"]),
        (lambda: ops.layer_norm(F64, np.ones(2), np.ones(2)), ["layer_norm", "(2, 3)", "(2,)"]),
        (lambda: ops.rms_norm(F64, np.ones((1, 3))), ["rms_norm", "(1, 3)"]),
        (lambda: ops.im2col(F64, 2), ["(2, 3)"]),
        (lambda: ops.im2col(tensor(np.ones((1, 2, 2, 1))), 3), ["window of 3", "(1, 2, 2, 1)"]),
        (lambda: lora(np.ones((2, 2, 3))), ["lora_linear", "(2, 2, 3)"]),
        (lambda: lora(np.ones((2, 4))), ["lora_linear", "(2, 4)", "(3, 2)"]),
        (lambda: lora(np.ones((2, 3)), np.ones(3)), ["lora_linear", "mask", "(2, 3)", "(3,)"]),
    ],
)  # fmt: skip
def test_shapes_that_do_not_fit(run, words):
    with pytest.raises(ShapeError) as error:
        run()
    assert all(word in str(error.value) for word in words), str(error.value)


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (lambda: F32 + F64, ["add", "float32", "float64"]),
        (lambda: F32 * np.ones(3), ["mul", "float32", "float64"]),
        (lambda: F32 * np.arange(3), ["mul", "float32", "int64"]),
        (lambda: F32 * tensor(np.arange(3)), ["mul", "float32", "int64"]),
        (lambda: F32 @ np.ones((3, 1)), ["matmul", "float32", "float64"]),
        (lambda: ops.concat([F32, F64]), ["concat", "float32", "float64"]),
        (lambda: ops.concat([F32, tensor(np.ones((2, 1), int))]), ["concat", "float32", "int64"]),
        (lambda: ops.cross_entropy(F32, np.array([0.0, 1.0])), ["integer labels", "float64"]),
        (lambda: ops.gather_rows(F32, np.array([0.5])), ["integer row numbers", "float64"]),
        (lambda: ops.where(np.array([1, 0, 1]), F32, F32), ["where", "bool", "int64"]),
        (lambda: F32[np.array([0, 0])], ["indexed by integers", "ndarray", "gather_rows"]),
        (lambda: F32[[0, 1]], ["indexed by integers", "list"]),
        (lambda: F32 ** tensor(2.0), ["x ** y", "exp(y * log(x))"]),
        (lambda: ops.relu(np.ones(3)), ["relu", "at least one Tensor", "ndarray"]),
    ],
)
def test_dtypes_that_do_not_fit(run, words):
    with pytest.raises(DtypeError) as error:
        run()
    assert all(word in str(error.value) for word in words), str(error.value)


def test_tensors_of_two_backends_do_not_mix():
    with pytest.raises(BackendError, match="'reference' and 'other'"):
        F64 + tensor(np.ones(3), backend=OTHER)
    assert (F64.to(OTHER) + tensor(np.ones(3), backend=OTHER)).backend is OTHER
    assert F64.to("reference") is F64


@pytest.mark.parametrize(
    ("gradient", "error"),
    [
        (np.ones(2), ShapeError),
        (np.ones(3, np.float32), DtypeError),
        (tensor(np.ones(3), backend=OTHER), BackendError),
        (1.0, ShapeError),
        ("abc", DtypeError),
    ],
)
def test_a_gradient_that_does_not_fit_the_tensor(gradient, error):
    with pytest.raises(error):
        tensor(np.ones(3), requires_grad=True).backward(gradient)


def test_backward_from_several_numbers_needs_a_gradient():
    x = tensor(np.ones(3), requires_grad=True)
    with pytest.raises(ShapeError, match=r"a single number, found shape \(3,\)"):
        (x * 2).backward()


@pytest.mark.parametrize(
    "run",
    [
        lambda: ops.clip(F64),
        lambda: ops.clip(F64, 1, 0),
        lambda: ops.clip(F64, float("nan")),
        lambda: ops.dropout(F64, 1.0, np.random.default_rng(0)),
        lambda: ops.dropout(F64, float("nan"), np.random.default_rng(0)),
        lambda: ops.cross_entropy(F64, np.array([0, 1]), label_smoothing=1.0),
        lambda: ops.im2col(tensor(np.ones((1, 4, 4, 1))), (2, 0)),
        lambda: ops.im2col(tensor(np.ones((1, 4, 4, 1))), 2, padding=-1),
    ],
)
def test_options_that_make_no_sense(run):
    with pytest.raises(ConfigError):
        run()


def test_an_error_of_the_library_itself_is_not_wrapped():
    def refuse(x):
        raise DtypeError("by the kernel")

    x = tensor(np.ones(2), backend=Backend("odd", {"relu": refuse}))
    with pytest.raises(DtypeError, match="by the kernel"):
        ops.relu(x)
    with pytest.raises(LoratkError, match="has no kernel 'tanh'"):
        ops.tanh(x)
