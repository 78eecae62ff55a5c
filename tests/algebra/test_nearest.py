"""The nearest factors of merged deltas too large to decompose whole, or to hold."""

import numpy as np
import pytest

from loratk.algebra import fused, nearest
from loratk.algebra.deltas import Delta
from loratk.algebra.fused import Draws, Fused
from loratk.algebra.fusing import Fusing, entry
from loratk.algebra.nearest import Block
from loratk.algebra.ranks import Rule
from loratk.plugins import default_registry

D, K = 90, 70


def merged(matrix, held=fused.HELD, **options):
    rule = default_registry().merge_rules["magnitude_prune"]
    return Fused(rule, [Delta(*matrix.shape, matrix=matrix)], [1.0], rule.settled({"density": 1.0} | options), [Draws(0)], held)


def falling(power, seed=0):
    rng = np.random.default_rng(seed)
    u, v = (np.linalg.qr(rng.standard_normal((size, K)))[0] for size in (D, K))
    return (u * np.arange(1.0, K + 1) ** -power) @ v.T


def made(matrix, rule, held=0):
    fusing = Fusing(default_registry().merge_rules["magnitude_prune"], {}, [Draws(0)], rule)
    one = merged(matrix, held)
    (pair,) = fusing.factors([one], 1, 99, ("x",))
    return one, pair


@pytest.mark.parametrize("power", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("held", [0, fused.HELD])
def test_the_result_is_nearly_the_best_of_its_rank(power, held):
    matrix, rank = falling(power), 8
    one, (a, b) = made(matrix, Rule(rank=rank), held)
    s = np.arange(1.0, K + 1) ** -power
    error, best = np.linalg.norm(matrix - a @ b) / np.linalg.norm(s), np.linalg.norm(s[rank:]) / np.linalg.norm(s)
    assert a.shape == (D, rank)
    assert best * (1 - 1e-9) <= error <= 1.02 * best + 1e-12
    assert entry([one], [(a, b)], 1, rank).error == pytest.approx(error, rel=1e-9)


RULES = [Rule(energy=0.9), Rule(error=0.3), Rule(ratio=0.2), Rule(energy=0.99, rank=5), Rule(energy=0.99999), Rule(error=0.6)]


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("power", [0.6, 1.5])
def test_rules_for_ranks_choose_what_they_would_from_all_singular_values(rule, power, monkeypatch):
    monkeypatch.setattr(nearest, "FIRST", 2)
    matrix = falling(power)
    _, (a, _) = made(matrix, rule)
    assert abs(a.shape[1] - rule.choose([np.linalg.svd(matrix, compute_uv=False)])) <= (power == 0.6)


def test_what_is_not_held_is_never_whole(monkeypatch):
    monkeypatch.setattr(fused.Fused, "matrix", None)
    _, (a, _) = made(falling(1.0), Rule(rank=8))
    assert a.shape == (D, 8)


def test_groups_are_blocks_of_columns():
    matrix = falling(2.0)
    blocks = [Block(merged(matrix, 0), start, start + 35) for start in (0, 35)]
    for block, want in zip(blocks, np.split(matrix, 2, axis=1), strict=True):
        np.testing.assert_array_equal(block.matrix(), want)
        right, left = np.random.default_rng(1).standard_normal((35, 3)), np.random.default_rng(2).standard_normal((D, 3))
        np.testing.assert_allclose(block.times(right), want @ right, atol=1e-12)
        np.testing.assert_allclose(block.turned_times(left), want.T @ left, atol=1e-12)


def test_the_same_bits_again():
    (_, one), (_, two) = (made(falling(1.0), Rule(rank=6)) for _ in range(2))
    assert np.array_equal(one[0], two[0])
    assert np.array_equal(one[1], two[1])
