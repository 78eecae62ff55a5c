"""What cannot be combined: every fault at once, with the adapter and the module named."""

import numpy as np
import pytest
from algebra_states import beside, module, state

from loratk import combine
from loratk.algebra.rules import DenseRule, FactorRule, MergeRule
from loratk.errors import AnomalyError, ConfigError, UnknownNameError


def refused(*args, **given):
    with pytest.raises(ConfigError) as caught:
        combine(*args, **given)
    return str(caught.value)


def test_all_faults_are_listed_with_the_modules():
    good = {"x": module(1), "y": module(2), "g": module(3, groups=2), "e": module(4, experts=2), "ok": module(5)}
    bad = {"x": module(1, k=5), "y": beside(module(2), bias=np.ones(3)), "g": module(3), "e": module(4), "ok": module(5)}
    odd = {"z": ({"method": "quux", "shape": [6, 4]}, {"quux_l": np.ones(3)}), "y": beside(module(2), bias=np.ones(4))}
    got = refused([state(good, "one"), state(bad, "two"), state(odd, "three")], rule="ties")
    assert got.startswith("These adapters cannot be combined by 'ties' ('one', 'three', 'two'):")
    for want in (
        "module 'x': weights that act as 6x4 and 6x5",
        "module 'y': bias of the shape 3 and 4",
        "module 'g': groups 2 and 1",
        "module 'e': experts 2 and none",
        "adapter 'three', module 'z': its method 'quux' is none that is installed",
    ):
        assert want in got
    assert "'ok'" not in got


def test_kernels_and_columns_that_differ():
    one = {"c": module(1, d=12, layer_type="conv2d", kernel=[2, 2]), "q": module(1, columns=[0, 4])}
    two = {"c": module(1, d=12, layer_type="conv1d", kernel=[4]), "q": module(1, columns=[4, 8])}
    got = refused([state(one, "one"), state(two, "two")])
    assert "module 'c': kernel 2x2 and 4" in got
    assert "module 'q': columns [0, 4] and [4, 8]" in got


def test_blocks_of_a_projection_that_another_changes_whole():
    got = refused([state({"qkv.q": module(1, columns=[0, 4])}, "one"), state({"qkv": module(1, k=12)}, "two")])
    assert "module 'qkv.q' is a block of 'qkv', which another adapter changes as a whole" in got


def test_weights_whose_sum_is_0_cannot_be_normalized():
    states = [state({"x": module(1), "y": module(2)}, "one"), state({"x": module(3), "y": module(4)}, "two")]
    got = refused(states, [1.0, 1.0], rule="linear", layers={"x": [1, -1]})
    assert "module 'x': the merge rule 'linear': the weights 1, -1 have the sum 0, so nothing can be divided by it (normalize)" in got
    assert "'y'" not in got.split(":", 1)[1]
    assert combine(states, [1.0, -1.0], rule="linear", options={"normalize": False}).certificate.error < 1e-12


def test_numbers_that_are_not_finite_or_do_not_fit():
    nan = state({"x": (module(1)[0], {"lora_A": np.full((6, 2), np.nan), "lora_B": np.ones((2, 4))})}, "nan")
    assert "adapter 'nan', module 'x': its update is not finite" in refused([nan])
    small = state({"x": module(1, dtype=np.float32)}, "small")
    assert "too large for float32" in refused([small], [1e39])


@pytest.mark.parametrize(
    ("given", "want"),
    [
        ({"states": []}, "there must be at least one adapter, and a weight for each, found 0 and 0 weights"),
        ({"weights": [1.0, 2.0]}, "found 1 and 2 weights"),
        ({"weights": [float("nan")]}, "weights must be finite numbers, found nan"),
        ({"weights": ["1"]}, "weights must be finite numbers, found '1'"),
        ({"seed": -1}, "seed must be a whole number from 0 up, found -1"),
        ({"seed": True}, "seed must be a whole number from 0 up, found True"),
        ({"rank": 0}, "rank must be a whole number from 1 up"),
        ({"dense": True, "energy": 0.5}, "what stays dense has no rank"),
        ({"layers": {"q": 1}}, "'q' matches no module"),
        ({"layers": {"re:(": 1}}, "no regular expression"),
        ({"layers": {"x": "1"}}, "'x' needs one finite number, or one for each of 1 adapters, found '1'"),
        ({"layers": {"x": [1, 2]}}, "'x' needs one finite number, or one for each of 1 adapters, found [1, 2]"),
        ({"layers": {"*": 1, "x": 2}}, "'x' decides about no module: patterns before it match all of its modules"),
    ],
)
def test_arguments_that_make_no_sense(given, want):
    assert want in refused(**{"states": [state({"x": module(1)})], **given})


def test_an_unknown_rule():
    with pytest.raises(UnknownNameError, match="Unknown merge rule 'sums'"):
        combine([state({"x": module(1)})], rule="sums")


class Wide(FactorRule):
    name, title = "wide", "factors of another shape"

    def merge(self, pairs, weights, options):
        return pairs[0][0], np.ones((2, 99))


class Tall(DenseRule):
    name, title = "tall", "columns of another shape"

    def merge(self, columns, weights, options):
        return np.ones((1, 1))


class Neither(MergeRule):
    name, title = "neither", "no kind of rule"


@pytest.mark.parametrize(
    ("rule", "want"),
    [
        (Wide(), r"the merge rule 'wide' must give factors of a \(6, 4\) matrix, found \(6, 2\) and \(2, 99\)"),
        (Tall(), r"the merge rule 'tall' must give \(6, 4\) columns, found \(1, 1\)"),
        (Neither(), "the merge rule 'neither' must be a FactorRule or a DenseRule, found Neither"),
    ],
)
def test_rules_that_break_the_contract_are_named(rule, want):
    with pytest.raises(ConfigError, match=want):
        combine([state({"x": module(1)})], rule=rule)
    assert AnomalyError is not ConfigError
