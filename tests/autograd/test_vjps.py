"""Every derivative against a difference quotient, by walking the table."""

import numpy as np
import pytest
import vjp_examples
from vjp_examples import EXAMPLES, call

from loratk.autograd import JOINT_VJPS, VJPS, Tensor, apply, defvjp, ops
from loratk.errors import ConfigError, PluginError
from loratk.kernels import Backend, get_backend
from loratk.testing import check_vjp

OPS = sorted({*VJPS, *JOINT_VJPS, *ops.__all__})


@pytest.mark.parametrize("name", OPS)
def test_every_op_equals_its_difference_quotient(name):
    assert name in EXAMPLES, f"give the op {name!r} examples in tests/autograd/vjp_examples.py"
    for args, options, *wrt in EXAMPLES[name]:
        check_vjp(call(name), args, options, wrt=wrt[0] if wrt else None)


def test_examples_are_all_of_ops():
    assert set(EXAMPLES) - set(OPS) == set()


def test_large_arguments_are_checked_along_random_directions():
    check_vjp(ops.matmul, (vjp_examples.real(20, 30), vjp_examples.real(30, 25)))


# Where a derivative is a convention


def slope(function, *values, gradient=1.0):
    tensors = [Tensor(np.array(value, np.float64), requires_grad=True, backend="reference") for value in values]
    function(*tensors).backward(np.full(tensors[0].shape, gradient))
    return [tensor.grad.tolist() for tensor in tensors]


@pytest.mark.parametrize(
    ("function", "x", "want"),
    [
        (ops.relu, [-1.0, 0.0, 2.0], [0, 0, 1]),
        (ops.absolute, [-1.0, 0.0, 2.0], [-1, 0, 1]),
        (lambda x: ops.clip(x, -1, 1), [-2.0, -1.0, 0.0, 1.0], [0, 0, 1, 0]),
        (lambda x: x**0, [0.0, 2.0], [0, 0]),
        (lambda x: x**1, [0.0], [1]),
        (lambda x: x**2, [0.0, -3.0], [0, -6]),
    ],
)
def test_derivatives_at_kinks_and_zeros(function, x, want):
    assert slope(function, x) == [want]


def test_equal_values_share_the_gradient_of_an_extreme():
    a, b = [1.0, 2.0, 3.0], [2.0, 2.0, 2.0]
    assert slope(ops.maximum, a, b, gradient=4.0) == [[0, 2, 4], [4, 2, 0]]
    assert slope(ops.minimum, a, b, gradient=4.0) == [[4, 2, 0], [0, 2, 4]]
    x = Tensor(np.array([[1.0, 3.0, 3.0]]), requires_grad=True, backend="reference")
    ops.max_over(x, -1).backward(np.array([6.0]))
    assert x.grad.tolist() == [[0, 3, 3]]


def test_binary_cross_entropy_of_logits_that_are_exactly_zero():
    x = Tensor(np.zeros(2), requires_grad=True, backend="reference")
    ops.binary_cross_entropy(x, np.array([0.0, 1.0])).backward()
    assert x.grad.tolist() == [0.25, -0.25]


def test_binary_cross_entropy_of_large_logits_does_not_overflow():
    x = Tensor(np.array([1000.0, -1000.0]), requires_grad=True, backend="reference")
    loss = ops.binary_cross_entropy(x, np.array([0.0, 1.0]))
    assert loss.item() == 1000.0
    loss.backward()
    assert x.grad.tolist() == [0.5, -0.5]


# The contract itself: it must catch what plugin authors get wrong


@pytest.fixture
def cube(monkeypatch):
    """A backend with a kernel `cube`, and a function that gives it a derivative for one test."""
    K = get_backend("reference")
    spied = Backend("reference", {**K.kernels, "cube": lambda x: x * x * x})

    def define(maker):
        monkeypatch.setitem(VJPS, "cube", (maker,))
        check_vjp("cube", (np.linspace(-1, 1, 6).reshape(2, 3),), backend=spied)

    return define


def test_a_right_derivative_passes(cube):
    cube(lambda K, out, x: lambda g: g * 3 * x * x)


def in_place(K, out, x):
    def pull(g):
        g *= 3 * x * x
        return g

    return pull


@pytest.mark.parametrize(
    ("maker", "message"),
    [
        (lambda K, out, x: lambda g: g * 2 * x * x, "the derivative and the difference quotient, as Jacobians"),
        (lambda K, out, x: lambda g: g * np.float64(3) * x.astype(np.float64) ** 2, "must be float32"),
        (lambda K, out, x: lambda g: np.full(x.shape, np.nan), "differ by nan"),
        (in_place, "writes into the gradient"),
    ],
)
def test_a_wrong_derivative_is_caught(cube, maker, message):
    with pytest.raises(AssertionError, match=message):
        cube(maker)


def test_a_derivative_that_depends_on_what_else_is_needed_is_caught(monkeypatch):
    def joint(K, needs, out, a, b):
        return lambda g: (g, g * (1.0 if all(needs) else -1.0))

    monkeypatch.setitem(JOINT_VJPS, "plus", joint)
    K = Backend("reference", {**get_backend("reference").kernels, "plus": np.add})
    with pytest.raises(AssertionError, match="argument 1"):
        check_vjp("plus", (np.ones(3), np.ones(3)), backend=K)


def test_nothing_to_differentiate_is_an_error():
    with pytest.raises(ConfigError, match="float64 arrays"):
        check_vjp(ops.relu, (np.ones(3, np.float32),))
    with pytest.raises(ConfigError, match=r"asked for \[1\]"):
        check_vjp(ops.gather_rows, (np.ones((3, 2)), np.array([0])), wrt=[1])


def test_a_derivative_is_written_once():
    with pytest.raises(PluginError, match="'relu' has a derivative already"):
        defvjp("relu", None)


def test_the_last_maker_serves_all_further_arguments():
    assert len(VJPS["add"]) == 1
    a, b = (Tensor(np.ones(2), requires_grad=True, backend="reference") for _ in range(2))
    apply("add", a, b).backward(np.array([1.0, 2.0]))
    assert b.grad.tolist() == [1, 2]


# The same derivatives on the compiled kernels


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", OPS)
def test_every_derivative_on_the_cpu_equals_the_references(name, dtype):
    for args, options, *wrt in EXAMPLES[name]:
        (want, wants), (got, gots) = (pulled(call(name), args, options, wrt, dtype, backend) for backend in ("reference", "cpu"))
        for a, b in zip([got, *gots], [want, *wants], strict=True):
            assert (a.dtype, a.shape) == (b.dtype, b.shape)
            np.testing.assert_allclose(a, b, rtol=0, atol=(1e-5 if dtype == np.float32 else 1e-13) * max(1, np.abs(b).max(initial=0)))


def pulled(function, args, options, wrt, dtype, backend):
    """The value of an op and the gradients of its floating arguments, under a made-up gradient."""
    operands, leaves = [], []
    for i, arg in enumerate(args):
        if isinstance(arg, np.ndarray):
            floating = arg.dtype == np.float64
            needs = floating and (not wrt or i in wrt[0])
            arg = Tensor(arg.astype(dtype) if floating else arg, requires_grad=needs, backend=backend)
            leaves += [arg] if needs else []
        elif hasattr(arg, "nbytes"):
            arg = get_backend(backend).freeze_weight(arg.numpy().astype(dtype))
        operands.append(arg)
    out = apply(function, *operands, **options) if isinstance(function, str) else function(*operands, **options)
    out.backward(np.cos(np.arange(out.size)).reshape(out.shape).astype(dtype))
    return out.numpy(), [leaf.grad for leaf in leaves]
