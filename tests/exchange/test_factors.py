"""Norms, singular values and angles of updates by their factors, against the dense matrices."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from states import dense, module

from loratk.exchange.factors import dense_update, frobenius, nearest_pair, norm, singular_values, together, triangle, update_pairs
from loratk.exchange.spectrum import spectrum

SIZES = st.integers(1, 9)


@settings(max_examples=60, deadline=None)
@given(d=SIZES, k=SIZES, rank=SIZES, alpha=st.sampled_from([0.0, 1.0, -3.0]), seed=st.integers(0, 99))
def test_norm_and_singular_values_are_those_of_the_matrix(d, k, rank, alpha, seed):
    record, held = module(seed, d=d, k=k, rank=rank, alpha=alpha)
    want = dense(record, held)
    pairs = update_pairs(record, held)
    np.testing.assert_allclose(dense_update(record, held), want, atol=1e-12)
    assert norm(pairs) == pytest.approx(np.linalg.norm(want), rel=1e-12, abs=1e-12)
    values = np.linalg.svd(want, compute_uv=False)
    got = singular_values(pairs)
    np.testing.assert_allclose(got[: len(values)], values[: len(got)], rtol=1e-9, atol=1e-12)


def test_groups_and_experts_are_parts():
    record, held = module(d=6, k=8, rank=4, groups=2)
    assert np.array_equal(dense_update(record, held), dense(record, held))
    assert norm(update_pairs(record, held)) == pytest.approx(np.linalg.norm(dense(record, held)), rel=1e-12)
    pairs = [module(seed) for seed in (1, 2, 3)]
    stack = {key: np.stack([held[key] for _, held in pairs]) for key in ("lora_A", "lora_B")}
    record = pairs[0][0] | {"experts": 3}
    assert np.array_equal(dense_update(record, stack), np.stack([dense(facts, held) for facts, held in pairs]))
    assert norm(update_pairs(record, stack)) == pytest.approx(np.linalg.norm(dense_update(record, stack)), rel=1e-12)


@pytest.mark.parametrize("shape", [(8192, 64), (1000, 7), (63, 5), (3, 9), (0, 2), (129, 1), (2 * 64 + 3, 4)])
def test_the_triangle_of_tall_matrices(shape):
    matrix = np.random.default_rng(0).standard_normal(shape)
    got = triangle(matrix)
    assert got.shape == (min(shape), shape[1])
    np.testing.assert_allclose(got.T @ got, matrix.T @ matrix, rtol=1e-12, atol=1e-11)


def test_norms_of_products_do_not_cancel():
    a = np.array([[1.0, 1.0], [1.0, 1.0 + 1e-9]])
    b = np.array([[1.0, 2.0, 3.0], [-1.0, -2.0, -3.0]])
    want = np.linalg.norm(a @ b)
    assert norm([(a, b)]) == pytest.approx(want, rel=1e-6)
    assert want < 1e-8


def test_large_numbers_do_not_overflow():
    pairs = [(np.full((3, 1), 1e100), np.full((1, 2), 1e60))] * 2
    assert norm(pairs) == pytest.approx(1e160 * 12**0.5)
    assert together(pairs, pairs).difference < 1e-14 * norm(pairs)
    assert norm([(np.full((3, 1), 1e200), np.full((1, 2), 1e200))]) == np.inf
    assert frobenius(np.array([3e-300, 4e-300])) == pytest.approx(5e-300)
    assert frobenius(np.zeros((0, 2))) == 0
    assert np.isnan(frobenius(np.array([1.0, np.nan])))


@settings(max_examples=60, deadline=None)
@given(d=SIZES, k=SIZES, ranks=st.tuples(SIZES, SIZES), seed=st.integers(0, 99))
def test_two_updates_beside_each_other(d, k, ranks, seed):
    (one, mine), (two, others) = (module(seed + place, d=d, k=k, rank=rank) for place, rank in enumerate(ranks))
    got = together(update_pairs(one, mine), update_pairs(two, others))
    x, y = dense(one, mine), dense(two, others)
    assert got.norms == pytest.approx((np.linalg.norm(x), np.linalg.norm(y)), rel=1e-10)
    assert got.difference == pytest.approx(np.linalg.norm(x - y), rel=1e-10)
    assert got.cosine == pytest.approx(np.sum(x * y) / np.linalg.norm(x) / np.linalg.norm(y), abs=1e-10)


def test_two_factorings_of_one_update_differ_by_rounding_only():
    record, held = module(d=300, k=200, rank=8)
    turn = np.linalg.qr(np.random.default_rng(1).standard_normal((8, 8)))[0] * 7
    turned = {"lora_A": held["lora_A"] @ turn, "lora_B": np.linalg.solve(turn, held["lora_B"])}
    got = together(update_pairs(record, held), update_pairs(record, turned))
    assert got.difference < 1e-14 * got.norms[0] * 10
    assert got.cosine == pytest.approx(1, abs=1e-14)


def test_a_zero_update_has_no_angle():
    record, held = module()
    pairs = update_pairs(record, held)
    zero = [(a, b * 0) for a, b in pairs]
    assert together(pairs, zero).cosine is None
    assert together(zero, zero).difference == 0


def test_the_nearest_pair_is_that_of_the_largest_singular_values():
    matrix = np.random.default_rng(0).standard_normal((7, 5))
    values = np.linalg.svd(matrix, compute_uv=False)
    for rank in range(1, 8):
        a, b = nearest_pair(matrix, rank)
        assert (a.shape, b.shape) == ((7, rank), (rank, 5))
        assert np.linalg.norm(matrix - a @ b) == pytest.approx(np.linalg.norm(values[rank:]), abs=1e-12)


def test_a_spectrum_that_is_not_finite_is_none():
    assert spectrum([(np.array([[np.nan]]), np.ones((1, 2)))]) is None
    assert np.isnan(singular_values([(np.array([[np.inf]]), np.ones((1, 2)))])).all()
