"""Whether two adapters are the same."""

import math

import numpy as np
import pytest
from states import module, state

from loratk import diff
from loratk.errors import ConfigError
from loratk.exchange.comparison import paired
from loratk.exchange.transform import cast


def changed(held, **arrays):
    return held | arrays


def test_the_same():
    found = diff(state({"a": module()}), state({"a": module()}, "other"))
    assert (found.same, found.identical, found.names) == (True, True, ("mine", "other"))
    assert found.modules[0].cosine == pytest.approx(1)


def test_dtypes_that_hold_the_same_numbers():
    (half,) = cast([state({"a": module()})], "bfloat16")
    (single,) = cast([half], "float32")
    found = diff(half, single)
    assert found.identical
    assert found.modules[0].remarks == ["bfloat16 and float32"]


@pytest.mark.parametrize("groups", [1, 2])
def test_a_relative_difference(groups):
    record, held = module(rank=4, k=8, groups=groups)
    found = diff(state({"a": (record, held)}), state({"a": (record, held | {"lora_B": held["lora_B"] * 1.25})}))
    assert found.modules[0].relative == pytest.approx(0.2)
    assert not found.same
    assert diff(state({"a": (record, held)}), state({"a": (record, held)})).same


def test_opposed_updates_differ_by_two():
    record, held = module()
    found = diff(state({"a": (record, held)}), state({"a": (record | {"alpha": -4.0, "scaling": -2.0}, held)}))
    assert found.modules[0].relative == pytest.approx(2)
    assert found.modules[0].cosine == pytest.approx(-1)


@pytest.mark.parametrize(
    ("one", "two", "want"),
    [
        ({}, {"method": "dora"}, "method lora and dora"),
        ({"kernel": [3, 1]}, {"kernel": [1, 3]}, "kernel [3, 1] and [1, 3]"),
        ({"columns": [0, 4]}, {"columns": [4, 8]}, "columns [0, 4] and [4, 8]"),
    ],
)
def test_records_that_cannot_be_compared(one, two, want):
    found = diff(state({"a": module(**one)}), state({"a": module(**two)}))
    assert found.modules[0].faults == [want]
    assert found.modules[0].relative == math.inf
    assert not found.same


def test_shapes_and_groups_that_cannot_be_compared():
    found = diff(state({"a": module(d=6), "b": module(rank=4, k=8)}), state({"a": module(d=5), "b": module(rank=4, k=8, groups=2)}))
    assert found.modules[0].faults == ["shape [6, 4] and [5, 4]", "lora_A of shape (6, 2) and (5, 2)"]
    assert found.modules[1].faults == ["groups 1 and 2"]


def test_parameters_of_other_methods():
    record = {"method": "loha", "rank": 2, "alpha": 1.0, "scaling": 0.5}
    one = state({"a": (record, {"w": np.ones(2), "v": np.ones(2)})})
    assert diff(one, one).identical
    assert diff(one, state({"a": (record, {"w": np.ones(2), "v": np.ones(2) * 2})})).modules[0].parts == {"v": 0.5, "w": 0.0}
    rescaled = state({"a": (record | {"scaling": 1.0}, {"w": np.ones(2), "v": np.ones(2)})})
    assert diff(one, rescaled).modules[0].faults == ["scaling 0.5 and 1.0"]
    assert diff(one, state({"a": (record, {"w": np.ones(2)})})).modules[0].faults == ["v in the first only"]
    assert diff(one, state({"a": (record, {"w": np.ones(2), "v": np.ones(3)})})).modules[0].faults == ["v of shape (2,) and (3,)"]


def test_the_bias_of_lora_b_counts_with_its_scaling():
    (one, mine), (two, others) = module(alpha=4.0), module(alpha=8.0)
    mine, others = mine | {"lora_bias": np.ones(4)}, others | {"lora_B": others["lora_B"] / 2, "lora_bias": np.ones(4) / 2}
    assert diff(state({"a": (one, mine)}), state({"a": (two, others)})).same


def test_pairs():
    x, y, z = (state({"a": module()}, name) for name in "xyz")
    assert paired([x], [y]) == ([(x, y)], [], [])
    assert paired([x, y], [y, z]) == ([(y, y)], ["x"], ["z"])
    with pytest.raises(ConfigError, match="choose one of each"):
        paired([x, y], [z])


def test_the_modules_are_tracked():
    seen = []
    diff(state({"a": module(), "b": module()}), state({"b": module()}), track=lambda items, what: seen.append((items, what)) or items)
    assert seen == [(["b"], "comparing")]
