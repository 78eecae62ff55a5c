"""The backward pass over graphs of every form: its values, its cost, and what it keeps alive."""

import gc
import threading
import weakref
from collections import Counter

import numpy as np
import pytest

from loratk.autograd import JOINT_VJPS, VJPS, Tensor, apply, detect_anomaly, no_grad, ops
from loratk.errors import AnomalyError, GraphError
from loratk.kernels import Backend, get_backend
from loratk.nn import MLP, Linear

REFERENCE = get_backend("reference")


def leaf(*values, backend="reference"):
    return Tensor(np.array(values, np.float64), requires_grad=True, backend=backend)


@pytest.fixture
def spied():
    """A backend that counts the calls of its kernels in `calls`."""
    calls = Counter()

    def counted(name, kernel):
        def call(*args, **options):
            calls[name] += 1
            return kernel(*args, **options)

        return call

    backend = Backend("spied", {name: counted(name, kernel) for name, kernel in REFERENCE.kernels.items()})
    backend.calls = calls
    return backend


# Values


def test_shared_input_of_one_op():
    x = leaf(2.0, 3.0)
    (x * x).sum().backward()
    assert x.grad.tolist() == [4, 6]


def test_nested_diamonds_add_every_path():
    x = leaf(1.5)
    y = x
    for _ in range(5):
        y = y + y * x  # y (1 + x)
    y.backward()
    want = 2.5**5 + 1.5 * 5 * 2.5**4
    assert x.grad[0] == pytest.approx(want, rel=1e-14)


def test_branches_of_unequal_depth_meet_before_they_go_on():
    x = leaf(0.5)
    deep = x
    for _ in range(20):
        deep = deep * 1.0
    (ops.exp(deep) * ops.sin(x) + deep).backward()
    assert x.grad[0] == pytest.approx(np.exp(0.5) * (np.sin(0.5) + np.cos(0.5)) + 1, rel=1e-14)


def test_a_parameter_used_several_times_takes_the_sum():
    x, w = np.random.default_rng(0).standard_normal((2, 3, 3))
    weight = Tensor(w, requires_grad=True, backend="reference")
    ((x @ weight) @ weight).sum().backward()
    ones = np.ones((3, 3))
    np.testing.assert_allclose(weight.grad, x.T @ (ones @ w.T) + (x @ w).T @ ones, rtol=1e-12)


def test_leaves_that_share_one_gradient_array_stay_apart():
    a, b = leaf(1.0), leaf(2.0)
    (a + b).backward()
    (a * 3.0).backward()
    assert (a.grad.tolist(), b.grad.tolist()) == ([4], [1])


def test_gradients_add_up_over_two_graphs():
    x = leaf(3.0)
    (x * 2.0).backward()
    (x * x).backward()
    assert x.grad.tolist() == [8]


def test_a_gradient_passed_in_is_copied():
    x, given = leaf(1.0, 2.0), np.array([5.0, 6.0])
    x.backward(given)
    given[:] = 0
    assert x.grad.tolist() == [5, 6]


def test_backward_of_a_leaf_adds_to_its_own_gradient():
    x = leaf(1.0)
    x.backward()
    x.backward()
    assert x.grad.tolist() == [2]


def test_detach_cuts_the_graph():
    x = leaf(2.0)
    (x * (x * 3.0).detach()).backward()
    assert x.grad.tolist() == [6]


def test_no_grad_inside_a_graph_makes_constants():
    x = leaf(2.0)
    with no_grad():
        factor = x * 3.0
    assert not factor.requires_grad
    (x * factor).backward()
    assert x.grad.tolist() == [6]


def test_no_grad_ends_with_its_block_even_on_an_error():
    with pytest.raises(ZeroDivisionError), no_grad():
        raise ZeroDivisionError
    assert (leaf(1.0) * 2.0).requires_grad


def test_no_grad_holds_for_its_own_thread_only():
    x, found = leaf(2.0), []
    with no_grad():
        thread = threading.Thread(target=lambda: found.append((x * 2.0).requires_grad))
        thread.start()
        thread.join()
        found.append((x * 2.0).requires_grad)
    assert found == [True, False]


# Cost


@pytest.mark.parametrize("width", [1, 2])
def test_cost_is_linear_in_depth_to_thousands_of_layers(spied, width):
    def pulled(depth):
        x = leaf(1.0, backend=spied)
        y = x
        for _ in range(depth):
            y = sum([y * 0.5] * width) if width > 1 else y * 1.0
        spied.calls.clear()
        y.backward()
        assert x.grad.tolist() == [1]
        return spied.calls["mul"] + spied.calls["add"]

    assert pulled(5000) == 5 * pulled(1000)


def test_thousand_layers_of_a_network_go_backward_and_are_freed_without_recursion():
    weight = Tensor(np.eye(3) * 1.001, requires_grad=True, backend="reference")
    x = np.ones((2, 3))
    y = Tensor(x, backend="reference")
    for _ in range(1000):
        y = ops.relu(y @ weight)
    y.sum().backward()
    np.testing.assert_allclose(weight.grad, np.full((3, 3), 2 * 1000 * 1.001**999), rtol=1e-9)
    unused = leaf(1.0)
    for _ in range(100_000):
        unused = unused + 1.0
    del unused  # a graph nobody ran backward


def test_a_frozen_weight_costs_no_product(spied):
    rng = np.random.default_rng(0)
    model = MLP([4, 5, 6, 3], rng=0).to(spied)
    x = rng.standard_normal((7, 4)).astype(np.float32)

    def products():
        spied.calls.clear()
        model(x).sum().backward()
        return spied.calls["matmul"], spied.calls["frozen_matmul"], spied.calls["frozen_matmul_t"]

    assert products() == (3 + 3 + 2, 0, 0)  # forward, for the weights, for the inputs of all layers but the first
    for layer in (model[0], model[4]):
        layer.weight.freeze()
    # the first layer's bias still trains, which needs the gradients of its output alone
    assert products() == (1 + 1 + 1, 2, 1)


def test_a_wholly_frozen_network_records_nothing(spied):
    model = MLP([4, 5, 3], rng=0).freeze().to(spied)
    y = model(np.ones((2, 4), np.float32))
    assert not y.requires_grad
    with pytest.raises(GraphError, match="requires_grad"):
        y.sum().backward()


# Memory


def buried(make):
    """Whether the array that `make` builds an activation on is freed once only the result is held."""
    x = leaf(*range(6)).reshape(2, 3)
    hidden = x * 2.0
    alive = weakref.ref(hidden.data)
    y = make(hidden)
    del hidden
    gc.collect()
    return y, alive() is None


@pytest.mark.parametrize(
    ("op", "kept"),
    [
        (lambda x: Linear.from_arrays(np.ones((3, 2)), backend="reference").freeze()(x), False),
        (lambda x: x @ np.ones((3, 2)), False),
        (lambda x: x @ Tensor(np.ones((3, 2)), requires_grad=True, backend="reference"), True),
        (lambda x: x + 1.0, False),
        (lambda x: x * 2.0, False),
        (ops.relu, False),
        (ops.tanh, False),
        (ops.exp, False),
        (ops.softmax, False),
        (lambda x: ops.cross_entropy(x, np.array([0, 1])), False),
        (lambda x: x.sum(), False),
        (ops.gelu, True),
    ],
)
def test_only_what_the_derivative_needs_is_kept(op, kept):
    y, freed = buried(op)
    assert freed is not kept
    y.sum().backward()


def test_backward_frees_what_the_graph_held():
    x = leaf(1.0, 2.0)
    hidden = x * 2.0
    alive = weakref.ref(hidden.data)
    total = ops.square(hidden).sum()
    del hidden
    total.backward()
    assert alive() is None
    assert x.grad is not None


def test_backward_frees_layer_by_layer_while_it_runs(monkeypatch):
    kept, seen = [], []
    (maker,) = VJPS["square"]

    def watched(K, out, x):
        kept.append(weakref.ref(x))
        pull = maker(K, out, x)

        def look(g):
            seen.append([ref() is not None for ref in kept])
            return pull(g)

        return look

    monkeypatch.setitem(VJPS, "square", (watched,))
    y = leaf(1.0, 2.0)
    for _ in range(3):
        y = ops.square(y * 1.0)
    y.sum().backward()
    assert seen == [[True, True, True], [True, True, False], [True, False, False]]


# Errors


def test_backward_twice_is_an_error():
    x = leaf(1.0, 2.0)
    loss = (x * x).sum()
    loss.backward()
    with pytest.raises(GraphError, match=r"run backward already \(first seen at op 'sum_over'\)"):
        loss.backward()
    assert x.grad.tolist() == [2, 4]


def test_backward_through_a_part_that_was_run_already_is_an_error_and_changes_nothing():
    x = leaf(1.0, 2.0)
    shared = x * x
    shared.sum().backward()
    other = leaf(1.0)
    with pytest.raises(GraphError, match="'mul'"):
        (shared.sum() + other).backward()
    assert other.grad is None
    assert x.grad.tolist() == [2, 4]


def test_backward_without_a_graph_is_an_error():
    with pytest.raises(GraphError, match="requires_grad=True"):
        Tensor(1.0, backend="reference").backward()
    with no_grad():
        y = leaf(1.0) * 2.0
    with pytest.raises(GraphError, match="outside of no_grad"):
        y.backward()


def test_an_op_without_a_derivative_is_an_error_only_where_one_is_needed():
    x = leaf(1.0, 3.0)
    with pytest.raises(GraphError, match="'argmax' has no derivative"):
        apply("argmax", x)
    with no_grad():
        assert apply("argmax", x).item() == 1
    with pytest.raises(GraphError, match="'dropout' has no derivative for argument 1"):
        apply("dropout", x, leaf(1.0, 0.0), scale=1.0)


def test_a_joint_derivative_that_leaves_out_what_is_needed_is_an_error(monkeypatch):
    monkeypatch.setitem(JOINT_VJPS, "neg", lambda K, needs, out, x: lambda g: (None,))
    with pytest.raises(GraphError, match="'neg' has no derivative for argument 0"):
        (-leaf(1.0)).backward()


# Anomaly mode


def test_anomaly_mode_names_the_op_whose_result_is_not_finite():
    x = leaf(1.0, 0.0)
    message = r"result of op 'log' is not finite: 1 of 2 entries, the first -inf, shape \(2,\)"
    with detect_anomaly(), pytest.raises(AnomalyError, match=message):
        ops.log(x * 1.0) * 2.0
    assert np.isneginf(ops.log(x).data[1])


def test_anomaly_mode_names_the_op_whose_gradient_is_not_finite():
    x = leaf(4.0, 0.0)
    with detect_anomaly():
        y = (ops.sqrt(x * 1.0) * 2.0).sum()
        with pytest.raises(AnomalyError, match="gradient of op 'sqrt' for its argument 0 is not finite: 1 of 2 entries, the first inf"):
            y.backward()


def test_anomaly_mode_blames_a_gradient_passed_in():
    with detect_anomaly(), pytest.raises(AnomalyError, match=r"passed to backward\(\) is not finite"):
        (leaf(1.0) * 2.0).backward(np.array([np.nan]))
