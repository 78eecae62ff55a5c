"""How often two updates pull an entry in opposite directions."""

import math

import numpy as np
import pytest
from algebra_states import module, state, update

from loratk.algebra import signs
from loratk.algebra.interference import compare


def pair(one, two, **options):
    return compare([state({"m": one}, "a"), state({"m": two}, "b")], **options).pairs[0].modules[0].signs


def want(one, two):
    x, y = (update(state({"m": item}), "m") for item in (one, two))
    return float(np.mean(x * y < 0))


@pytest.mark.parametrize("kind", [{}, {"groups": 4}, {"experts": 3}])
def test_an_estimate_lies_within_its_error(monkeypatch, kind):
    monkeypatch.setattr(signs, "SMALL", 100)
    monkeypatch.setattr(signs, "SAMPLE", 4000)
    one, two = module(1, d=60, k=40, rank=4, **kind), module(2, d=60, k=40, rank=4, **kind)
    one[1]["lora_B"] += 0.7 * two[1]["lora_B"]
    one[1]["lora_A"] += 0.7 * two[1]["lora_A"]
    truth = want(one, two)
    found = [pair(one, two, seed=seed) for seed in range(40)]
    assert all((item.exact, item.entries) == (False, 4000) for item in found)
    assert found[0].error == pytest.approx(math.sqrt(found[0].share * (1 - found[0].share) / 4000))
    misses = np.array([(item.share - truth) / item.error for item in found])
    assert np.abs(misses).max() < 4
    assert 0.7 < misses.std() < 1.3
    assert abs(misses.mean()) < 0.6


def test_equal_seeds_draw_equal_entries_and_others_others(monkeypatch):
    monkeypatch.setattr(signs, "SMALL", 100)
    one, two = module(1, d=60, k=40), module(2, d=60, k=40)
    assert pair(one, two) == pair(one, two)
    assert len({pair(one, two, seed=seed).share for seed in range(5)}) > 1


def test_entries_that_are_zero_are_no_conflict():
    """The decomposition makes 1e-17 of a zero: half of these would be conflicts."""
    one, two = module(1, d=30, k=20, rank=3), module(2, d=30, k=20, rank=3)
    one[1]["lora_A"][:25] = 0
    two[1]["lora_B"][:, :10] = 0
    found = pair(one, two)
    assert found.exact
    assert found.share == pytest.approx(want(one, two))
    assert found.share < 0.1
