"""Projections of an adapter on another against dense projectors."""

import numpy as np
import pytest
from algebra_states import beside, known, module, state, update
from hypothesis import given, settings
from hypothesis import strategies as st

from loratk.algebra.subspace import SPACES, orthogonalise, project
from loratk.algebra.sums import add
from loratk.errors import ConfigError
from loratk.exchange.hub import state_faults


def dense_part(d, e, space):
    """The part of D in E by dense projectors, from the definition."""
    if space == "update":
        return np.sum(d * e) / np.sum(e * e) * e
    u, s, v = np.linalg.svd(e)
    rank = int(np.count_nonzero(s > 1e-10 * s[0]))
    p, q = u[:, :rank] @ u[:, :rank].T, v[:rank].T @ v[:rank]
    eye = np.eye(len(p)), np.eye(len(q))
    rest = (eye[0] - p) @ d @ (eye[1] - q)
    return {"inputs": p @ d, "outputs": d @ q, "both": p @ d @ q, "either": d - rest}[space]


@pytest.mark.parametrize("space", SPACES)
@given(d=st.integers(1, 9), k=st.integers(1, 9), ranks=st.tuples(st.integers(1, 4), st.integers(1, 4)), seed=st.integers(0, 20))
@settings(max_examples=25, deadline=None)
def test_the_part_and_the_rest_are_those_of_dense_projectors(space, d, k, ranks, seed):
    a, b = (state({"x": module(seed + n, d=d, k=k, rank=rank, alpha=3)}, "ab"[n]) for n, rank in enumerate(ranks))
    whole, other = update(a, "x"), update(b, "x")
    want = dense_part(whole, other, space)
    size = np.linalg.norm(whole)
    part, rest = project(a, onto=b, space=space), orthogonalise(a, against=b, space=space)
    np.testing.assert_allclose(update(part.state, "x") / size, want / size, atol=1e-11)
    np.testing.assert_allclose(update(rest.state, "x") / size, (whole - want) / size, atol=1e-11)
    assert part.share == pytest.approx((np.linalg.norm(want) / size) ** 2, abs=1e-10) == rest.shares["x"]
    assert abs(np.sum(update(rest.state, "x") * other)) <= 1e-10 * size * np.linalg.norm(other)
    assert not [*state_faults([part.state]), *state_faults([rest.state])]


def test_an_adapter_has_nothing_outside_of_itself():
    a = state({"x": module(1)}, "a")
    for space in SPACES:
        done = orthogonalise(a, against=a, space=space)
        assert done.share == pytest.approx(1)
        assert np.abs(update(done.state, "x")).max() < 1e-12


def test_the_rest_reads_nothing_that_the_other_reads():
    a, b = state({"x": module(1, d=12, k=9)}, "a"), state({"x": module(2, d=12, k=9, rank=3)}, "b")
    rest = update(orthogonalise(a, against=b, space="either").state, "x")
    np.testing.assert_allclose(update(b, "x").T @ rest, 0, atol=1e-12)
    np.testing.assert_allclose(rest @ update(b, "x").T, 0, atol=1e-12)


@pytest.mark.parametrize("kind", [{"groups": 2, "rank": 4, "k": 8}, {"experts": 3}])
def test_groups_and_experts_are_projected_each_on_its_own(kind):
    a, b = state({"x": module(1, d=9, **kind)}, "a"), state({"x": module(2, d=9, **kind)}, "b")
    split = (lambda m: list(m)) if "experts" in kind else (lambda m: np.split(m, 2, axis=1))
    want = [d - dense_part(d, e, "inputs") for d, e in zip(split(update(a, "x")), split(update(b, "x")), strict=True)]
    done = orthogonalise(a, against=b, space="inputs").state
    for got, one in zip(split(update(done, "x")), want, strict=True):
        np.testing.assert_allclose(got, one, atol=1e-12)
    assert not list(state_faults([done]))


def test_only_the_strongest_directions_of_the_other_count_when_asked():
    left, right = known([10.0, 1.0], d=12, k=9)
    record = module(0, d=12, k=9)[0] | {"scaling": 1.0}
    b = state({"x": (record, {"lora_A": left, "lora_B": right})}, "b")
    a = state({"x": module(5, d=12, k=9)}, "a")
    u = np.linalg.svd(update(b, "x"))[0][:, :1]
    want = update(a, "x") - u @ (u.T @ update(a, "x"))
    np.testing.assert_allclose(update(orthogonalise(a, against=b, space="inputs", energy=0.9).state, "x"), want, atol=1e-12)


def test_what_the_other_lacks_stays_or_is_left_out_and_the_two_sum_to_the_whole():
    a = state({"x": beside(module(1), bias=np.ones(4)), "y": module(2), "n": ({"method": "full"}, {"weight": np.ones(3)})}, "a")
    b = state({"x": module(3)}, "b")
    rest, part = orthogonalise(a, against=b), project(a, onto=b)
    assert list(rest.state.modules) == ["x", "y", "n"]
    np.testing.assert_array_equal(rest.state.tensors["y.lora_A"], a.tensors["y.lora_A"])
    np.testing.assert_array_equal(rest.state.tensors["x.bias"], np.ones(4))
    assert list(part.state.tensors) == ["x.lora_A", "x.lora_B"]
    assert part.notes[0] == "2 modules without an update in 'b' are left out, as they have no part in it, such as 'y'"
    np.testing.assert_allclose(update(add([rest.state, part.state]).state, "x"), update(a, "x"), atol=1e-12)


def test_an_update_of_zero_has_no_directions():
    zero = module(2)
    b = state({"x": (zero[0], zero[1] | {"lora_B": np.zeros((2, 4))})}, "b")
    a = state({"x": module(1)}, "a")
    done = orthogonalise(a, against=b)
    assert done.share == 0
    np.testing.assert_allclose(update(done.state, "x"), update(a, "x"), atol=1e-13)


def test_what_cannot_be_projected_is_refused_by_name():
    a = state({"x": module(1)}, "a")
    with pytest.raises(ConfigError, match="space must be one of 'both', 'either', 'inputs', 'outputs', 'update', found 'rows'"):
        orthogonalise(a, against=a, space="rows")
    with pytest.raises(ConfigError, match=r"module 'x': shape \[6, 4\] and \[7, 4\]"):
        project(a, onto=state({"x": module(1, d=7)}, "b"))
    with pytest.raises(ConfigError, match="DoRA magnitude is not linear"):
        project(a, onto=state({"x": beside(module(1), magnitude=np.ones(4))}, "b"))
    with pytest.raises(ConfigError, match="no module with an update in common"):
        project(a, onto=state({"y": module(1)}, "b"))
