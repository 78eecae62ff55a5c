"""The contract of merge rules: every registered rule keeps it, and rules that break it are found out."""

import numpy as np
import pytest

from loratk.algebra.rules import DenseRule, FactorRule
from loratk.errors import ConfigError
from loratk.io.store import Option
from loratk.plugins import default_registry
from loratk.testing import check_merge_rule

RULES = default_registry().merge_rules


@pytest.mark.parametrize("name", RULES)
def test_every_rule_that_is_registered(name):
    check_merge_rule(RULES[name])


@pytest.mark.parametrize("name", [name for name, rule in RULES.items() if "normalize" in rule.options])
def test_every_rule_normalized(name):
    check_merge_rule(RULES[name], options={"normalize": True})


@pytest.mark.parametrize("how", ["total", "weighted", "frequency"])
@pytest.mark.parametrize("name", ["ties", "dare_ties", "della"])
def test_every_election_and_negative_weights(name, how):
    check_merge_rule(RULES[name], options={"elect": how, "density": 0.7}, weights=(1.0, -0.5, 2.0))


class CrossTerms(FactorRule):
    """The sum of factors in place of products."""

    name, title = "cross", "mean of the factors"

    def merge(self, pairs, weights, options):
        return sum(a[:, :1] for a, _ in pairs), sum(b[:1] for _, b in pairs)


class Named(FactorRule):
    name, title = "named", "the first"

    def merge(self, pairs, weights, options):
        return pairs[0]


class Transposed(Named):
    def merge(self, pairs, weights, options):
        a, b = pairs[0]
        return b.T, a.T


class Writes(Named):
    def merge(self, pairs, weights, options):
        pairs[0][0][:] = 0
        return pairs[0]


class Adds(Named):
    def merge(self, pairs, weights, options):
        a, b = pairs[0]
        return np.ones((len(a), 1)), np.ones((1, b.shape[1]))


class Divides(Named):
    def merge(self, pairs, weights, options):
        a, b = pairs[0]
        return a, np.full_like(b, np.nan)


class Untitled(Named):
    title = None


class NoDefaults(Named):
    options = {"density": Option("a share", 0.0)}  # noqa: RUF012

    def option_faults(self, options):
        yield "density must be above 0"


class TakesAll(Named):
    def settled(self, given):
        return dict(given)


class TextOnly(Named):
    options = {"density": Option("a share", 0.5)}  # noqa: RUF012

    def settled(self, given):
        return {"density": given.get("density", 0.5)}


class NoWeights(Named):
    def weight_faults(self, weights, options):
        yield "never"


class Whole(DenseRule):
    name, title = "whole", "depends on what comes together"

    def merge(self, columns, weights, options):
        return columns[0].values - columns[0].values.mean()


class Narrow(Whole):
    def merge(self, columns, weights, options):
        return columns[0].values[:, :1]


class Constant(Whole):
    def merge(self, columns, weights, options):
        return np.ones_like(columns[0].values)


class Scales(Whole):
    def merge(self, columns, weights, options):
        columns[0].values[:] *= 2
        return columns[0].values


class Fresh(Whole):
    def merge(self, columns, weights, options):
        return columns[0].values * np.random.default_rng().random(columns[0].values.shape)


@pytest.mark.parametrize(
    ("rule", "want"),
    [
        (CrossTerms(), "The merged delta must not depend on how a delta is made of factors"),
        (Transposed(), r"merge\(\) must give factors \(7, r\) and \(r, 9\), found"),
        (Adds(), "Adapters that add nothing must make nothing"),
        (Writes(), r"merge\(\) must not change what it is given"),
        (Scales(), r"merge\(\) must not change what it is given"),
        (Divides(), "The merged delta must be finite"),
        (Untitled(), "A merge rule needs a title, found None"),
        (NoDefaults(), r"(?s)settled\(\) must accept the defaults, .*density must be above 0"),
        (TakesAll(), r"settled\(\) must refuse an option that the rule does not have"),
        (TextOnly(), r"settled\(\) must make the same of text, found \{'density': '0\.5'\}"),
        (NoWeights(), r"weight_faults\(\) must accept the weights \(0\.5, 1\.0, 2\.0\), found \['never'\]"),
        (Whole(), "The merged delta must not depend on the columns given at once"),
        (Narrow(), r"merge\(\) must give columns of the shape \(7, 9\), found \(7, 1\)"),
        (Constant(), "Adapters that add nothing must make nothing"),
        (Fresh(), "The merged delta must not depend on the columns given at once"),
        ("sum", "A merge rule must be a FactorRule or a DenseRule, found str"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else "",
)
def test_rules_that_break_it_are_found_out(rule, want):
    with pytest.raises(AssertionError, match=want):
        check_merge_rule(rule)


def test_options_that_it_does_not_take_are_told():
    with pytest.raises(AssertionError, match=r"density must be above 0, up to 1, found 2"):
        check_merge_rule(RULES["ties"], options={"density": 2})
    with pytest.raises(AssertionError, match="The check needs 3 weights, found 1"):
        check_merge_rule(RULES["ties"], weights=[1.0])
    with pytest.raises(ConfigError):
        RULES["ties"].settled({"density": 2})
