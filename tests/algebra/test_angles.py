"""Angles between subspaces."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loratk.algebra.angles import principal_angles, shared_energy, subspace_similarity


def basis(rng, d, count):
    return np.linalg.qr(rng.standard_normal((d, count)))[0]


def turned(rng, columns):
    return columns @ np.linalg.qr(rng.standard_normal((columns.shape[1],) * 2))[0]


@pytest.mark.parametrize("angle", [0.0, 1e-15, 1e-12, 1e-8, 1e-4, 0.3, math.pi / 4, 1.2, math.pi / 2 - 1e-9, math.pi / 2])
def test_one_known_angle_however_small(angle):
    """The cosine of 1e-12 is 1 in float64: by cosines alone it would be read as 0, and 1e-8 with an error of half of it."""
    rng = np.random.default_rng(0)
    frame = basis(rng, 50, 4)
    left = frame[:, :2]
    right = np.stack([frame[:, 0] * math.cos(angle) + frame[:, 2] * math.sin(angle), frame[:, 3]], axis=1)
    got = principal_angles(turned(rng, left), turned(rng, right))
    assert got[0] == pytest.approx(angle, rel=1e-7, abs=5e-16)
    assert got[1] == pytest.approx(math.pi / 2, abs=1e-15)


def test_several_known_angles_at_once():
    rng = np.random.default_rng(1)
    want = np.array([0.0, 1e-11, 1e-3, 0.7, 1.5])
    frame = basis(rng, 40, 12)
    left, right = frame[:, :5], frame[:, :5] * np.cos(want) + frame[:, 5:10] * np.sin(want)
    got = principal_angles(turned(rng, left), turned(rng, right))
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-15)
    np.testing.assert_allclose(got, principal_angles(right, left), rtol=1e-4, atol=1e-15)


@given(seed=st.integers(0, 99), d=st.integers(1, 9), sizes=st.tuples(st.integers(0, 9), st.integers(0, 9)))
@settings(max_examples=60, deadline=None)
def test_against_the_angle_of_the_nearest_vectors(seed, d, sizes):
    """By definition the cosines are the singular values of left^T right, each the best that is orthogonal to those before."""
    rng = np.random.default_rng(seed)
    i, j = (min(size, d) for size in sizes)
    left, right = basis(rng, d, i), basis(rng, d, j)
    got = principal_angles(left, right)
    assert got.shape == (min(i, j),)
    assert (np.diff(got) >= -1e-12).all()
    assert ((got >= 0) & (got <= math.pi / 2)).all()
    if got.size:
        np.testing.assert_allclose(np.cos(got), np.linalg.svd(left.T @ right, compute_uv=False), atol=1e-12)
        projectors = left @ left.T - right @ right.T
        if i == j:  # the norm of the difference of projectors is the sine of the largest angle
            assert math.sin(got[-1]) == pytest.approx(np.linalg.norm(projectors, 2), abs=1e-12)


def test_a_space_within_another_has_no_angle_to_it():
    rng = np.random.default_rng(2)
    whole = basis(rng, 30, 6)
    got = principal_angles(turned(rng, whole), turned(rng, whole[:, :2]))
    np.testing.assert_allclose(got, 0, atol=1e-15)
    assert subspace_similarity(whole, whole[:, :2])[-1, -1] == pytest.approx(1)


def test_similarity_is_that_of_the_paper():
    """Hu et al. 2021, eq. 4, written out."""
    rng = np.random.default_rng(3)
    left, right = basis(rng, 20, 5), basis(rng, 20, 3)
    got = subspace_similarity(left, right)
    for i in range(1, 6):
        for j in range(1, 4):
            want = np.linalg.norm(left[:, :i].T @ right[:, :j], "fro") ** 2 / min(i, j)
            assert got[i - 1, j - 1] == pytest.approx(want)
    assert shared_energy(left, right)[-1, -1] == pytest.approx(np.sum(np.cos(principal_angles(left, right)) ** 2))
