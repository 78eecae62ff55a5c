"""Every merge rule against its formula, entry by entry, and how options are told."""

import itertools

import numpy as np
import pytest
from merge_oracles import add, drop, elect, mag_prune, trim

from loratk.algebra import pruning
from loratk.algebra.rules import Columns
from loratk.errors import ConfigError, UnknownNameError
from loratk.plugins import default_registry

RULES = default_registry().merge_rules
WEIGHTS = [(1.0, 1.0, 1.0), (0.5, 1.5, 0.25), (1.0, -0.5, 0.0)]


def deltas(d=7, k=6, count=3, seed=0):
    return [np.random.default_rng([seed, place]).standard_normal((d, k)) for place in range(count)]


def numbers(d=7, k=6, count=3):
    return [np.random.default_rng([9, place]).random((d, k)) for place in range(count)]


def merged(name, given, weights, **options):
    """What a rule makes of dense deltas, with the numbers of `numbers`, all columns at once."""
    rule = RULES[name]
    settled = rule.settled(options)
    drawn = numbers(*given[0].shape, len(given))
    columns = [
        Columns(delta, 0, rule.prepare(lambda delta=delta: iter([delta]), delta.shape, settled), lambda u=u: u)
        for delta, u in zip(given, drawn, strict=True)
    ]
    return rule.merge(columns, weights, settled)


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("density", [0.2, 0.7, 1.0])
def test_sums_of_pruned_deltas(weights, density):
    given, drawn = deltas(), numbers()
    epsilon = 0.1 if density < 1 else 0.0
    want = {
        "magnitude_prune": [trim(delta, density) for delta in given],
        "dare": [drop(delta, density, u) for delta, u in zip(given, drawn, strict=True)],
        "della_linear": [mag_prune(delta, density, epsilon, u) for delta, u in zip(given, drawn, strict=True)],
    }
    for (name, pruned), normalize in itertools.product(want.items(), (False, True)):
        got = merged(name, given, weights, density=density, normalize=normalize)
        np.testing.assert_allclose(got, add(pruned, weights, normalize), rtol=1e-13, atol=1e-14, err_msg=name)


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("how", ["total", "weighted", "frequency"])
def test_means_of_those_that_have_the_elected_sign(weights, how):
    given, drawn, density = deltas(), numbers(), 0.6
    want = {
        "ties": [trim(delta, density) for delta in given],
        "dare_ties": [drop(delta, density, u) for delta, u in zip(given, drawn, strict=True)],
        "della": [mag_prune(delta, density, 0.1, u) for delta, u in zip(given, drawn, strict=True)],
    }
    for (name, pruned), normalize in itertools.product(want.items(), (False, True)):
        got = merged(name, given, weights, density=density, elect=how, normalize=normalize)
        np.testing.assert_allclose(got, elect(pruned, weights, how, normalize), rtol=1e-13, atol=1e-14, err_msg=name)


def test_elections_differ_where_they_should():
    """One adapter of large mass against two of small: mass says +, the majority -, and a large weight of one of the two -."""
    given = [np.array([[3.0]]), np.array([[-1.0]]), np.array([[-1.0]])]
    weights = [1.0, 5.0, 1.0]
    got = {how: merged("ties", given, weights, density=1, elect=how).item() for how in ("total", "weighted", "frequency")}
    assert got == {"total": 3.0, "weighted": -3.0, "frequency": -3.0}
    assert merged("ties", given, weights, density=1, elect="frequency", normalize=True).item() == -1.0


def test_a_draw_goes_to_the_positive_and_an_adapter_of_weight_0_has_no_vote():
    given = [np.array([[1.0]]), np.array([[-1.0]])]
    assert merged("ties", given, [1.0, 1.0], density=1).item() == 1.0
    assert merged("ties", [-np.ones((1, 1)), 5 * np.ones((1, 1))], [1.0, 0.0], density=1).item() == -1.0
    assert merged("ties", given, [0.0, 0.0], density=1).item() == 0.0


def test_della_drops_small_entries_rather_than_large_ones():
    delta = np.tile(np.linspace(0.1, 1.0, 10)[:, None], (1, 4000)) * np.random.default_rng(0).choice([-1, 1], (10, 4000))
    kept = merged("della_linear", [delta], [1.0], density=0.5, epsilon=0.3) != 0
    want = 0.5 - 0.3 + 0.6 * np.arange(10) / 9
    np.testing.assert_allclose(kept.mean(axis=1), want, atol=4 * 0.5 / 4000**0.5)


@pytest.mark.parametrize("name", ["dare", "della_linear"])
def test_what_is_dropped_by_chance_is_made_up_for(name):
    """The mean over many draws is the delta."""
    delta = np.tile(deltas(5, 1, 1)[0], (1, 20000))
    got = merged(name, [delta], [1.0], density=0.4)
    np.testing.assert_allclose(got.mean(axis=1), delta[:, 0], atol=5 * np.abs(delta).max() * 1.6 / 20000**0.5)
    assert abs((got != 0).mean() - 0.4) < 0.01


# The threshold


@pytest.mark.parametrize("gathered", [3, 1 << 22])
def test_the_largest_entries_are_found_exactly_however_many_bits_they_share(monkeypatch, gathered):
    monkeypatch.setattr(pruning, "GATHERED", gathered)
    rng = np.random.default_rng(0)
    near = 1 + rng.integers(0, 40, (30, 20)) * 2.0**-52
    for values in (rng.standard_normal((30, 20)), near * rng.choice([-1, 1], near.shape), np.zeros((30, 20)), np.ones((30, 20)),
                   10.0 ** rng.integers(-300, 300, (30, 20)), rng.integers(-2, 3, (30, 20)) * 1.0):  # fmt: skip
        falling = np.sort(np.abs(values).ravel())[::-1]
        for count in (1, 2, 77, 300, 599, 600):
            got = pruning.largest(lambda values=values: (values[:, s : s + 7] for s in range(0, 20, 7)), count)
            least = falling[count - 1]
            assert got == (least, np.count_nonzero(falling > least), np.count_nonzero(falling == least))


@pytest.mark.parametrize("density", [0.01, 0.1, 0.33, 0.5, 0.99, 1.0])
def test_exactly_the_asked_share_is_kept_also_among_equal_entries(density):
    for values in (np.ones((6, 5)), np.random.default_rng(1).integers(1, 4, (6, 5)) * 1.0, deltas(6, 5, 1)[0]):
        got = merged("magnitude_prune", [values], [1.0], density=density)
        np.testing.assert_array_equal(got, trim(values, density))
        assert np.count_nonzero(got) == max(1, int(density * 30 + 1e-9))


# Options


def test_options_come_as_text_or_as_what_they_mean():
    rule = RULES["ties"]
    want = {"density": 0.25, "elect": "frequency", "normalize": True}
    assert rule.settled({"density": "0.25", "elect": "frequency", "normalize": "yes"}) == want == rule.settled(want)
    assert rule.settled({})["elect"] == "total"


@pytest.mark.parametrize(
    ("name", "options", "want"),
    [
        ("sum", {"density": 1}, "there is no option 'density'; its options: none"),
        ("ties", {"densty": 1, "normalize": "perhaps"}, "no option 'densty'; its options: 'density', 'elect', 'normalize'"),
        ("ties", {"densty": 1, "normalize": "perhaps"}, "normalize must be yes or no, found 'perhaps'"),
        ("ties", {"density": "half"}, "density must be a finite number, found 'half'"),
        ("ties", {"density": True}, "density must be a finite number, found True"),
        ("ties", {"density": "nan"}, "density must be a finite number, found 'nan'"),
        ("dare", {"density": 0}, "density must be above 0, up to 1, found 0"),
        ("dare", {"density": 1.5}, "density must be above 0, up to 1, found 1.5"),
        ("ties", {"elect": "mass"}, "elect must be one of 'frequency', 'total', 'weighted', found 'mass'"),
        ("ties", {"elect": 3}, "elect must be a word, found 3"),
        ("della", {"density": 0.5, "epsilon": 0.5}, "density - epsilon must be above 0 and density + epsilon at most 1"),
        ("della", {"epsilon": -0.1}, "density - epsilon must be above 0"),
    ],
)
def test_options_that_make_no_sense_are_listed(name, options, want):
    with pytest.raises(ConfigError) as caught:
        RULES[name].settled(options)
    assert f"The merge rule {name!r} cannot work with these options:" in str(caught.value)
    assert want in str(caught.value)


def test_an_unknown_rule_is_said():
    with pytest.raises(UnknownNameError, match=r"Unknown merge rule 'tys'\. Registered merge rules: 'dare', .*'ties'"):
        default_registry().merge_rule("tys")
