"""Factor-space rounding against dense decompositions and known spectra."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loratk.algebra.ranks import Rule
from loratk.algebra.rounding import concatenated, orthonormal, rounded, svd
from loratk.errors import AnomalyError, ConfigError, ShapeError


def pair(d, r, k, seed=0, scale=1.0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((d, r)) * scale, rng.standard_normal((r, k))


def known(values, d=40, k=30, r=None, seed=3):
    """A pair with these singular values, its factors mixed by a random matrix."""
    rng = np.random.default_rng(seed)
    n = len(values)
    u, v = (np.linalg.qr(rng.standard_normal((m, n)))[0] for m in (d, k))
    mix = rng.standard_normal((n, n)) + 3 * np.eye(n)
    return u * np.asarray(values) @ mix, np.linalg.solve(mix, v.T)


SIZES = st.integers(0, 9)


@given(SIZES, st.integers(0, 14), SIZES, st.integers(0, 99), st.sampled_from([1e-200, 1e-30, 1.0, 1e30, 1e150]))
@settings(max_examples=120, deadline=None)
def test_svd_is_that_of_the_product_for_every_shape_and_size_of_numbers(d, r, k, seed, scale):
    a, b = pair(d, r, k, seed, scale)
    got, q = svd((a, b)), min(d, r, k)
    assert got.u.shape == (d, q)
    assert got.s.shape == (q,)
    assert got.v.shape == (q, k)
    want = a @ b
    size = np.abs(want).max(initial=0.0) or 1.0
    np.testing.assert_allclose(got.u * got.s @ got.v / size, want / size, atol=1e-13)
    np.testing.assert_allclose(got.s / size, np.linalg.svd(want / size, compute_uv=False)[:q] if q else [], atol=1e-13)
    np.testing.assert_allclose(got.u.T @ got.u, np.eye(q), atol=1e-13)
    np.testing.assert_allclose(got.v @ got.v.T, np.eye(q), atol=1e-13)
    assert (np.diff(got.s) <= 0).all()


@pytest.mark.parametrize("shift", [(1e200, 1e-200), (1e-300, 1e300), (1e-250, 1e100)])
def test_factors_of_very_different_size_lose_nothing(shift):
    a, b = known([5.0, 3.0, 1.0])
    got = svd((a * shift[0], b * shift[1])).s / (shift[0] * shift[1])
    np.testing.assert_allclose(got, [5, 3, 1], rtol=1e-12)


def test_columns_of_very_different_size_lose_nothing():
    a, b = known([5.0, 3.0, 1.0])
    by = np.array([1e160, 1e-160, 1.0])
    np.testing.assert_allclose(svd((a * by, b / by[:, None])).s, [5, 3, 1], rtol=1e-12)


@given(st.integers(1, 400), st.integers(0, 20))
@settings(max_examples=60, deadline=None)
def test_qr_in_blocks_is_a_qr(m, n):
    matrix = np.random.default_rng(m).standard_normal((m, n))
    q, r = orthonormal(matrix)
    assert q.shape == (m, min(m, n))
    assert r.shape == (min(m, n), n)
    np.testing.assert_allclose(q @ r, matrix, atol=1e-12)
    np.testing.assert_allclose(q.T @ q, np.eye(min(m, n)), atol=1e-13)
    np.testing.assert_allclose(np.tril(r, -1), 0, atol=1e-12)


@given(st.integers(0, 9), st.sampled_from([0.1, 1e-8, 1e8]))
@settings(max_examples=30, deadline=None)
def test_an_update_minus_itself_is_zero(seed, scale):
    a, b = pair(30, 4, 20, seed, scale)
    done = rounded(concatenated([(a, b), (a / 3, b * 3)], [1, -1]))
    assert (done.rank, done.error, done.energy) == (1, 0.0, 1.0)
    assert not done.pair[0].any()
    assert not done.pair[1].any()


def test_a_weighted_sum_is_exact():
    pairs = [pair(7, 2, 5, 1), pair(7, 3, 5, 2), pair(7, 1, 5, 3)]
    a, b = concatenated(pairs, [0.5, -2.0, 3.0])
    assert a.shape == (7, 6)
    assert b.shape == (6, 5)
    np.testing.assert_allclose(a @ b, sum(w * x @ y for w, (x, y) in zip([0.5, -2.0, 3.0], pairs, strict=True)), atol=1e-14)
    np.testing.assert_array_equal(concatenated([pairs[0]])[1], pairs[0][1])


VALUES = [8.0, 4.0, 2.0, 1.0, 0.5]


@pytest.mark.parametrize(
    ("rule", "rank"),
    [
        ({}, 5), ({"rank": 2}, 2), ({"rank": 9}, 5), ({"ratio": 0.5}, 2), ({"ratio": 0.25}, 3), ({"ratio": 1}, 1),
        ({"energy": 64 / 85.25}, 1), ({"energy": 80 / 85.25}, 2), ({"energy": 0.94}, 3), ({"energy": 1}, 5),
        ({"error": (5.25 / 85.25) ** 0.5}, 2), ({"error": 0.24}, 3), ({"error": 0}, 5),
        ({"energy": 0.94, "ratio": 0.5}, 3), ({"energy": 0.94, "error": 0.1}, 4), ({"energy": 0.94, "rank": 2}, 2),
        ({"energy": 0.5, "rank": 4}, 1),
    ],
)  # fmt: skip
def test_each_rule_gives_the_rank_that_follows_from_the_spectrum(rule, rank):
    a, b = known(VALUES)
    done = rounded((a, b), **rule)
    assert done.rank == rank == done.pair[0].shape[1] == done.pair[1].shape[0]
    left = sum(value**2 for value in VALUES[rank:]) / 85.25
    assert done.error == pytest.approx(left**0.5, abs=1e-12)
    assert done.energy == pytest.approx(1 - left, abs=1e-12)
    got = np.linalg.norm(a @ b - done.pair[0] @ done.pair[1]) / 85.25**0.5
    assert got == pytest.approx(left**0.5, abs=1e-12)
    assert done.capped == (rule.get("rank") == 2)


@given(st.integers(1, 8), st.integers(1, 8), st.integers(1, 8), st.integers(0, 50), st.floats(0, 0.99))
@settings(max_examples=100, deadline=None)
def test_an_error_bound_holds_and_one_rank_less_breaks_it(d, r, k, seed, bound):
    a, b = pair(d, r, k, seed)
    done = rounded((a, b), error=bound)
    whole = np.linalg.norm(a @ b)
    assert np.linalg.norm(a @ b - done.pair[0] @ done.pair[1]) <= bound * whole + 1e-12 * whole
    if done.rank > 1:
        values = np.linalg.svd(a @ b, compute_uv=False)
        assert np.linalg.norm(values[done.rank - 1 :]) > bound * whole


def test_both_factors_of_a_rounded_pair_are_of_one_size():
    a, b = rounded(known(VALUES), rank=3).pair
    np.testing.assert_allclose(np.linalg.norm(a, axis=0), np.linalg.norm(b, axis=1), rtol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(a, axis=0) ** 2, VALUES[:3], rtol=1e-12)


def test_a_rule_asks_for_more_than_the_known_values_where_they_do_not_do():
    known = [np.array([4.0, 2.0])]
    assert Rule(energy=0.5).needed(known, 1.0) == 1
    assert Rule(energy=0.99).needed(known, 1.0) == 3
    assert Rule(ratio=0.5).needed(known, 1.0) == 3
    assert Rule(ratio=0.6).needed(known, 1.0) == 1
    assert Rule(energy=0.99, rank=2).choose(known, beyond=1.0) == 2


def test_parts_share_one_rank_and_its_budget():
    spectra = [np.array([4.0, 2.0]), np.array([1.0])]
    assert Rule(ratio=0.5).choose(spectra) == 2
    assert Rule(energy=0.8).choose(spectra) == 1  # 17 of 21
    assert Rule(energy=0.9).choose(spectra) == 2
    assert Rule(rank=2, energy=0.9).choose(spectra, parts=2) == 1
    assert Rule().choose([np.zeros(3)]) == 1
    assert Rule().choose([np.zeros(0)]) == 1


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ({"rank": 0}, "rank must be a whole number from 1 up, found 0"),
        ({"rank": True}, "found True"),
        ({"ratio": 0}, "ratio must be a number above 0, up to 1, found 0"),
        ({"energy": 1.5}, "energy must be a number above 0, up to 1, found 1.5"),
        ({"error": 1}, "error must be a number from 0 up, below 1, found 1"),
        ({"error": float("nan")}, "found nan"),
    ],
)
def test_rules_without_sense_are_refused(rule, said):
    with pytest.raises(ConfigError, match=said):
        rounded(pair(3, 2, 3), **rule)


def test_factors_without_sense_are_refused():
    with pytest.raises(ShapeError, match=r"found \(3, 2\) and \(3, 4\)"):
        svd((np.ones((3, 2)), np.ones((3, 4))))
    with pytest.raises(AnomalyError, match="NaN or infinite"):
        svd((np.full((3, 2), np.nan), np.ones((2, 4))))
    with pytest.raises(AnomalyError, match="too large for float64"):
        svd((np.full((3, 2), 1e200), np.full((2, 4), 1e200)))
    with pytest.raises(ShapeError, match="3x4, 3x5"):
        concatenated([(np.ones((3, 2)), np.ones((2, 4))), (np.ones((3, 2)), np.ones((2, 5)))])
    with pytest.raises(ConfigError, match="2 updates and 1 weights"):
        concatenated([pair(3, 2, 4)] * 2, [1.0])
    with pytest.raises(ConfigError, match="at least one"):
        concatenated([])
    with pytest.raises(ConfigError, match="finite"):
        concatenated([pair(3, 2, 4)], [float("inf")])
