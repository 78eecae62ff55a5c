"""Learning-rate schedules: their values at every turn, and what they refuse."""

import math

import pytest

from loratk.errors import ConfigError
from loratk.nn import constant, cosine, linear_warmup, step_decay


def values(schedule, steps):
    return [schedule(t) for t in steps]


def test_constant():
    assert values(constant(), [0, 1, 10**6]) == [1, 1, 1]


def test_linear_warmup_then_constant():
    assert values(linear_warmup(3), range(6)) == [0.25, 0.5, 0.75, 1, 1, 1]
    assert values(linear_warmup(0), range(2)) == [1, 1]


def test_linear_warmup_then_down_to_nothing():
    assert values(linear_warmup(1, 5), range(8)) == [0.5, 1, 0.75, 0.5, 0.25, 0, 0, 0]
    assert values(linear_warmup(0, 4), range(6)) == [1, 0.75, 0.5, 0.25, 0, 0]


def test_cosine_with_and_without_warmup_and_floor():
    assert values(cosine(4), range(7)) == pytest.approx([1, (2 + math.sqrt(2)) / 4, 0.5, (2 - math.sqrt(2)) / 4, 0, 0, 0], abs=1e-15)
    assert values(cosine(6, warmup=2, floor=0.2), [0, 1, 2, 4, 6, 100]) == pytest.approx([1 / 3, 2 / 3, 1, 0.6, 0.2, 0.2])


def test_step_decay():
    assert values(step_decay(2, 0.5), range(6)) == [1, 1, 0.5, 0.5, 0.25, 0.25]
    assert step_decay(1, 0.1)(10**6) == 0


@pytest.mark.parametrize(
    "make",
    [
        lambda: linear_warmup(-1),
        lambda: linear_warmup(1.5),
        lambda: linear_warmup(True),
        lambda: linear_warmup(5, 5),
        lambda: linear_warmup(0, 0),
        lambda: linear_warmup(0, 2.0),
        lambda: cosine(0),
        lambda: cosine(3, warmup=3),
        lambda: cosine(3, floor=-0.1),
        lambda: cosine(3, floor=1.1),
        lambda: cosine(3, floor=math.nan),
        lambda: step_decay(0, 0.5),
        lambda: step_decay(2, 1.5),
        lambda: step_decay(2, math.nan),
        lambda: step_decay(2, "0.5"),
    ],
)
def test_schedules_that_make_no_sense(make):
    with pytest.raises(ConfigError, match="must be"):
        make()
