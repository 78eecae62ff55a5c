"""Randomised decompositions against whole ones."""

import numpy as np
import pytest
from algebra_states import known
from hypothesis import given, settings
from hypothesis import strategies as st

from loratk.algebra.randomised import SMALL, best_of, distance, leading
from loratk.algebra.ranks import Rule

RULES = [Rule(rank=5), Rule(energy=0.9), Rule(energy=0.999), Rule(error=0.2), Rule(ratio=0.1), Rule(rank=40, energy=0.99)]


def matrix(values, d=700, k=400):
    """A large matrix with these singular values."""
    a, b = known(values, d=d, k=k)
    return a @ b


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("decay", [0.5, 0.8, 0.95])
def test_the_rank_and_the_error_are_those_of_the_whole_decomposition(rule, decay):
    values = decay ** np.arange(150)
    m = matrix(values)
    ((a, b),), _ = best_of([m], rule, np.random.default_rng(0))
    rank, whole = a.shape[1], np.linalg.norm(values)
    assert abs(rank - rule.choose([values])) <= 1
    error, best = np.linalg.norm(m - a @ b), np.linalg.norm(values[rank:])
    assert error <= best * 1.01 + 1e-12
    if rule.rank is None and rule.error is not None:
        assert error <= rule.error * whole
    if rule.rank is None and rule.energy is not None:
        assert error**2 <= (1 - rule.energy) * whole**2 * (1 + 1e-9)


def test_what_is_left_out_is_measured():
    m = np.random.default_rng(1).standard_normal((600, 500)) + 20 * matrix([30.0, 20.0, 10.0], 600, 500)
    svd, beyond = leading(m, Rule(rank=3), np.random.default_rng(0))
    assert len(svd.s) < SMALL
    for rank in (0, 1, 3, 10):
        want = np.linalg.norm(m - svd.u[:, :rank] * svd.s[:rank] @ svd.v[:rank])
        assert np.hypot(np.linalg.norm(svd.s[rank:]), beyond) == pytest.approx(want)


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 9))
@settings(max_examples=40, deadline=None)
def test_small_matrices_of_every_shape(d, k, seed):
    m = np.random.default_rng(seed).standard_normal((d, k))
    ((a, b),), _ = best_of([m], Rule(), np.random.default_rng(0))
    assert a.shape[1] == min(d, k)
    np.testing.assert_allclose(a @ b, m, atol=1e-12)
    ((a, b),), _ = best_of([m], Rule(rank=1), np.random.default_rng(0))
    assert np.linalg.norm(m - a @ b) == pytest.approx(np.linalg.norm(np.linalg.svd(m, compute_uv=False)[1:]))


def test_a_slowly_falling_spectrum_is_decomposed_whole():
    m = np.random.default_rng(1).standard_normal((400, 300))
    ((a, b),), _ = best_of([m], Rule(error=0.05), np.random.default_rng(0))
    values = np.linalg.svd(m, compute_uv=False)
    assert a.shape[1] == Rule(error=0.05).choose([values])
    assert np.linalg.norm(m - a @ b) <= 0.05 * np.linalg.norm(m)


def test_a_flat_tail_beyond_the_first_sketch_counts():
    values = np.array([10.0] + [1.0] * 300)
    m = matrix(values, 800, 500)
    ((a, b),), _ = best_of([m], Rule(energy=0.5), np.random.default_rng(0))
    assert 101 <= a.shape[1] <= 106
    assert np.linalg.norm(m - a @ b) ** 2 <= 200 * (1 + 1e-9)


def test_parts_share_one_rank_and_a_matrix_of_zeros_has_none():
    parts = [matrix([4.0, 2.0]), np.zeros((700, 400)), matrix([1.0])]
    pairs, capped = best_of(parts, Rule(energy=0.9), np.random.default_rng(0))
    assert [a.shape[1] for a, _ in pairs] == [2, 2, 2]
    assert not capped
    assert not pairs[1][0].any()
    assert best_of(parts, Rule(rank=1, energy=0.9), np.random.default_rng(0))[1]


def test_a_seed_gives_the_same_numbers_again():
    m = matrix(0.9 ** np.arange(100))
    first, second = (best_of([m], Rule(rank=8), np.random.default_rng(7))[0][0] for _ in range(2))
    np.testing.assert_array_equal(first[0], second[0])
    np.testing.assert_array_equal(first[1], second[1])


def test_distance_is_the_norm_of_the_difference():
    rng = np.random.default_rng(0)
    m, a, b = rng.standard_normal((50, 30)), rng.standard_normal((50, 3)), rng.standard_normal((3, 30))
    assert distance(m, (a, b)) == pytest.approx(np.linalg.norm(m - a @ b))
