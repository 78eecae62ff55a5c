"""Whole adapters combined: true deltas, scalings once, modules that are missing, certificates, and chance that the seed decides."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from algebra_states import beside, module, state, update
from merge_oracles import add, elect, trim

from loratk import combine
from loratk.algebra import deltas
from loratk.exchange import AdapterState
from loratk.exchange.factors import update_pairs

DENSE_RULES = ("ties", "dare", "dare_ties", "magnitude_prune", "della", "della_linear")
kept = partial(combine, dense=True)


def two(**more):
    """Adapters of other ranks and scalings, each with a module of its own."""
    one = state({"x": module(1, d=20, k=15, rank=3), "y": module(2, d=5, k=8)}, "one", **more)
    other = state({"x": module(3, d=20, k=15, rank=2, alpha=3.0, rslora=True), "z": module(4)}, "two", **more)
    return [one, other]


def dense(result, path):
    """What a module of a result adds, (d, k), also where it is kept dense."""
    held = result.state.parameters()[path]
    return held["weight"].T.astype(float) if "weight" in held else update(result.state, path)


def close(got, want, tolerance=1e-12):
    np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance * np.abs(want).max())


# Sums


def test_the_sum_is_that_of_the_true_deltas_with_all_ranks():
    a, b = two()
    got = combine([a, b], [0.7, -0.4])
    close(update(got.state, "x"), 0.7 * update(a, "x") - 0.4 * update(b, "x"))
    close(update(got.state, "y"), 0.7 * update(a, "y"))
    close(update(got.state, "z"), -0.4 * update(b, "z"))
    assert [got.state.modules[path]["rank"] for path in "xyz"] == [5, 2, 2]
    assert all(record["scaling"] == 1 and record["alpha"] == record["rank"] for record in got.state.modules.values())
    assert got.certificate.error < 1e-14
    assert got.against_sum.error < 1e-14


def test_the_average_counts_what_is_missing_as_zeros():
    a, b = two()
    got = combine([a, b], [1.0, 3.0], rule="linear")
    close(update(got.state, "x"), (update(a, "x") + 3 * update(b, "x")) / 4)
    close(update(got.state, "y"), update(a, "y") / 4)
    unscaled = combine([a, b], [1.0, 3.0], rule="linear", options={"normalize": False})
    close(update(unscaled.state, "x"), update(a, "x") + 3 * update(b, "x"))


@pytest.mark.parametrize("asked", [{"rank": 2}, {"energy": 0.9}, {"error": 0.3}, {"ratio": 0.5}, {}], ids=str)
def test_a_rounded_sum_is_the_best_of_its_rank_and_the_certificate_says_how_near(asked):
    a, b = two()
    got = combine([a, b], rule="svd", **asked)
    exact = update(a, "x") + update(b, "x")
    u, s, v = np.linalg.svd(exact)
    rank = got.state.modules["x"]["rank"]
    want = {"rank": 2, "energy": np.searchsorted(np.cumsum(s**2) / np.sum(s**2), 0.9) + 1, "ratio": np.sum(s >= 0.5 * s[0])}
    assert rank == want.get(next(iter(asked), ""), rank)
    assert asked or rank == 5
    close(update(got.state, "x"), (u[:, :rank] * s[:rank]) @ v[:rank], 1e-10)
    entry = got.certificate.modules["x"]
    assert entry.error == pytest.approx(np.linalg.norm(update(got.state, "x") - exact) / np.linalg.norm(exact), abs=1e-13)
    assert entry.energy == pytest.approx(np.sum(s[:rank] ** 2) / np.sum(s**2), abs=1e-12)
    assert entry.rank == rank
    assert entry.norm == pytest.approx(np.linalg.norm(exact))
    if "error" in asked:
        assert entry.error <= 0.3 < np.linalg.norm(s[rank - 1 :]) / np.linalg.norm(s)


# Rules on entries


@pytest.mark.parametrize("density", [0.3, 1.0])
def test_ties_is_that_of_the_true_deltas(density):
    a, b = two()
    got = kept([a, b], [0.7, 0.4], rule="ties", options={"density": density})
    pruned = [trim(update(a, "x"), density), trim(update(b, "x"), density)]
    close(dense(got, "x"), elect(pruned, [0.7, 0.4], "total"))
    close(dense(got, "z"), 0.4 * trim(update(b, "z"), density))
    assert got.certificate.error == 0


def test_rounding_a_rule_on_entries_is_told_against_what_it_gives_and_against_the_sum():
    a, b = two()
    got = combine([a, b], [0.7, 0.4], rule="ties", options={"density": 0.3}, rank=4)
    exact = elect([trim(update(a, "x"), 0.3), trim(update(b, "x"), 0.3)], [0.7, 0.4], "total")
    u, s, v = np.linalg.svd(exact)
    close(update(got.state, "x"), (u[:, :4] * s[:4]) @ v[:4], 1e-9)
    entry, other = got.certificate.modules["x"], got.against_sum.modules["x"]
    assert entry.error == pytest.approx(np.linalg.norm(s[4:]) / np.linalg.norm(s), rel=1e-9)
    assert entry.energy == pytest.approx(np.sum(s[:4] ** 2) / np.sum(s**2), rel=1e-9)
    total = 0.7 * update(a, "x") + 0.4 * update(b, "x")
    assert other.error == pytest.approx(np.linalg.norm(update(got.state, "x") - total) / np.linalg.norm(total), rel=1e-9)
    assert other.norm == pytest.approx(np.linalg.norm(total))
    free = combine([a, b], [0.7, 0.4], rule="ties", options={"density": 0.3})
    assert free.state.modules["x"]["rank"] == 5, "as much as the two have together"
    near = combine([a, b], [0.7, 0.4], rule="ties", options={"density": 0.3}, error=0.05)
    assert near.certificate.error <= 0.05


@pytest.mark.parametrize("rule", DENSE_RULES)
def test_blocks_of_columns_do_not_show(rule, monkeypatch):
    states = [
        state({"x": module(seed, d=20, k=15, rank=3), "g": module(seed + 5, d=6, k=9, rank=3, groups=3)}, str(seed)) for seed in (1, 2)
    ]
    want = kept(states, rule=rule)
    monkeypatch.setattr(deltas, "BLOCK", 40)
    got = kept(states, rule=rule)
    for path in "xg":
        close(dense(got, path), dense(want, path), 1e-13)
    from loratk.algebra import fused, fused_module

    for where in (fused, fused_module):
        monkeypatch.setattr(where, "HELD", 0)
    got = combine(states, rule=rule, rank=6)
    np.testing.assert_allclose(update(got.state, "x"), update(combine(states, rule=rule, rank=6).state, "x"), atol=1e-12)


@pytest.mark.parametrize("rule", DENSE_RULES)
def test_a_seed_gives_the_same_bits_whatever_the_order_of_modules_and_adapters(rule):
    a, b = two()
    want = kept([a, b], [0.7, 0.4], rule=rule, seed=3)
    turned = replace(a, modules=dict(reversed(a.modules.items())), tensors=dict(reversed(a.tensors.items())))
    alone = {path: state({path: module(4)}, "two") for path in "z"}
    for got in (kept([turned, b], [0.7, 0.4], rule=rule, seed=3), kept([a, b], [0.7, 0.4], rule=rule, seed=3)):
        assert got.state.tensors.keys() == want.state.tensors.keys()
        assert all(np.array_equal(got.state.tensors[key], array) for key, array in want.state.tensors.items())
    close(dense(kept([b, a], [0.4, 0.7], rule=rule, seed=3), "x"), dense(want, "x"), 1e-14)
    close(dense(kept([alone["z"]], [0.4], rule=rule, seed=3), "z"), dense(want, "z"), 1e-14)
    other = dense(kept([a, b], [0.7, 0.4], rule=rule, seed=4), "x")
    assert np.array_equal(other, dense(want, "x")) == (rule in ("ties", "magnitude_prune"))


def test_adapters_of_one_name_draw_each_for_itself():
    a = state({"x": module(1, d=30, k=20)}, "default")
    alone = dense(kept([a], rule="dare"), "x") != 0
    both = dense(kept([a, a], rule="dare"), "x")
    counts = np.round(both / update(a, "x") / 2).astype(int)
    assert set(np.unique(counts)) == {0, 1, 2}
    assert not np.array_equal(counts == 2, alone)


def test_dare_at_density_1_and_magnitude_prune_at_density_1_are_the_sum():
    states = two()
    want = combine(states, [0.7, 0.4])
    for rule in ("dare", "magnitude_prune", "della_linear"):
        got = combine(states, [0.7, 0.4], rule=rule, options={"density": 1.0})
        for path in "xyz":
            close(update(got.state, path), update(want.state, path))
        assert got.against_sum.error < 1e-13


def test_any_columns_of_a_delta_in_blocks():
    record, held = module(1, groups=3, k=12, rank=6)
    whole = update(state({"x": (record, held)}), "x")
    delta = deltas.Delta(6, 12, update_pairs(record, held))
    for start in range(12):
        for stop in range(start + 1, 13):
            np.testing.assert_array_equal(delta.columns(start, stop).shape, (6, stop - start))
            close(delta.columns(start, stop), whole[:, start:stop])


# What adapters are made of


@pytest.mark.parametrize("rule", ["sum", "linear", "svd", *DENSE_RULES])
@pytest.mark.parametrize("more", [{"groups": 2, "k": 8, "rank": 4}, {"experts": 3}], ids=["groups", "experts"])
def test_groups_and_experts(rule, more):
    """A grouped convolution is one matrix, each expert of a stack its own."""
    states = [state({"x": module(seed, **more)}, str(seed)) for seed in (1, 2)]
    options = {"density": 1.0} if rule in DENSE_RULES else {}
    got = combine(states, [0.5, 1.5], rule=rule, options=options, energy=1.0)
    assert got.state.modules["x"].items() >= {key: value for key, value in more.items() if key in ("groups", "experts")}.items()
    ones = [update(one, "x") for one in states]
    total = {"linear": add(ones, [0.25, 0.75])}.get(rule, add(ones, [0.5, 1.5]))
    if rule in ("ties", "dare_ties", "della"):
        total = elect(ones, [0.5, 1.5], "total")
    close(update(got.state, "x"), total, 1e-9)


@pytest.mark.parametrize("rule", ["svd", "ties"])
def test_ranks_and_certificates_of_groups_and_experts(rule):
    """The rank counts all groups together, and is that of each expert; the error is that of all of them."""
    for more, rank in (({"groups": 2, "k": 8, "rank": 4}, 2), ({"experts": 3}, 2)):
        states = [state({"x": module(seed, **more)}, str(seed)) for seed in (1, 2)]
        got, exact = (combine(states, rule=rule, **asked) for asked in ({"rank": rank}, {"energy": 1.0}))
        assert got.state.modules["x"]["rank"] == rank
        want = update(exact.state, "x")
        assert got.certificate.error == pytest.approx(np.linalg.norm(update(got.state, "x") - want) / np.linalg.norm(want), rel=1e-9)
        total = add([update(one, "x") for one in states], [1, 1])
        assert got.against_sum.error == pytest.approx(np.linalg.norm(update(got.state, "x") - total) / np.linalg.norm(total), rel=1e-9)


def test_modules_and_experts_draw_each_for_itself():
    record, held = module(1, d=30, k=20)
    stack = {key: np.stack([array, array]) for key, array in held.items()}
    same = state({"x": (record, held), "y": (record, held), "e": (record | {"experts": 2}, stack)})
    got = combine([same], rule="dare", energy=1.0)
    drawn = [update(got.state, "x"), update(got.state, "y"), *update(got.state, "e")]
    masks = [np.abs(delta) > 1e-9 for delta in drawn]
    for one in range(4):
        for two in range(one):
            assert 0.3 < np.mean(masks[one] == masks[two]) < 0.7


def test_trimming_a_stack_is_each_expert_s_and_of_groups_all_together():
    experts = [state({"x": module(seed, experts=2, d=6, k=4)}, str(seed)) for seed in (1, 2)]
    got = combine(experts, rule="magnitude_prune", options={"density": 0.3}, energy=1.0)
    want = [add([trim(update(one, "x")[place], 0.3) for one in experts], [1, 1]) for place in (0, 1)]
    close(update(got.state, "x"), np.stack(want), 1e-9)
    groups = [state({"x": module(seed, groups=2, d=6, k=4)}, str(seed)) for seed in (1, 2)]
    got = combine(groups, rule="magnitude_prune", options={"density": 0.3}, energy=1.0)
    close(update(got.state, "x"), add([trim(update(one, "x"), 0.3) for one in groups], [1, 1]), 1e-9)


def test_biases_follow_the_rule_with_lora_bias_scaled_once():
    bias = [np.arange(4.0), np.array([3.0, -2.0, 0.5, -1.0])]
    a = state({"x": beside(module(1), lora_bias=bias[0])}, "a")  # scaling 2
    b = state({"x": beside(module(2, alpha=3.0), bias=bias[1])}, "b")
    both = combine([a, b], [0.5, 1.0]).state.parameters()["x"]
    close(both["bias"], 0.5 * 2 * bias[0] + bias[1])
    assert "lora_bias" not in both
    alone = combine([a, a], [0.5, 1.0]).state.parameters()["x"]
    close(alone["lora_bias"], 3 * bias[0])
    got = combine([a, b], rule="ties", options={"density": 0.5}).state.parameters()["x"]["bias"]
    want = elect([trim(2 * bias[0][:, None], 0.5), trim(bias[1][:, None], 0.5)], [1, 1], "total")
    close(got, want[:, 0])
    only = state({"x": ({"method": "bias"}, {"bias": bias[1]})}, "only")
    got = combine([only, only], [1.0, 2.0])
    assert got.state.modules["x"]["method"] == "bias"
    close(got.state.tensors["x.bias"], 3 * bias[1])
    close(combine([a, only]).state.parameters()["x"]["bias"], 2 * bias[0] + bias[1])


def test_other_methods_that_are_products_of_factors_count_as_such():
    rng = np.random.default_rng(0)
    held = {f"hada_w{n}_{side}": rng.standard_normal(shape) for n in (1, 2) for side, shape in (("a", (4, 2)), ("b", (2, 6)))}
    record = {"method": "loha", "layer_type": "linear", "shape": [6, 4], "rank": 2, "alpha": 1.0, "scaling": 0.5, "orientation": "torch"}
    loha = state({"x": (record, held)}, "loha")
    want = 0.5 * ((held["hada_w1_a"] @ held["hada_w1_b"]) * (held["hada_w2_a"] @ held["hada_w2_b"])).T
    a = state({"x": module(1)}, "a")
    got = combine([a, loha], [1.0, 2.0])
    close(update(got.state, "x"), update(a, "x") + 2 * want)
    assert got.state.modules["x"]["method"] == "lora"


def test_layers_have_weights_of_their_own():
    a, b = two()
    got = combine([a, b], [0.5, 1.0], layers={"x": [2.0, 0.0], "*": 0.1})
    close(update(got.state, "x"), update(a, "x"))
    assert got.state.modules["x"]["rank"] == 3, "what counts for nothing takes no rank"
    close(update(got.state, "y"), 0.05 * update(a, "y"))
    close(update(got.state, "z"), 0.1 * update(b, "z"))


def test_numbers_are_float32_unless_one_is_float64():
    single = [state({"x": module(seed, dtype=np.float32)}, str(seed)) for seed in (1, 2)]
    got = combine(single)
    assert {array.dtype for array in got.state.tensors.values()} == {np.dtype("float32")}
    assert 0 <= got.certificate.error < 1e-7
    assert combine([single[0], state({"x": module(3)}, "3")]).state.tensors["x.lora_A"].dtype == np.float64


def test_the_result_is_a_sound_adapter_that_tells_where_it_came_from():
    a, b = two(fingerprint="f" * 64, metadata={"task": "sums"})
    got = combine([a, b], [0.5, 1.0], rule="dare", seed=7, name="both").state
    assert isinstance(got, AdapterState)
    assert (got.name, got.fingerprint, got.metadata["task"]) == ("both", "f" * 64, "sums")
    for word in ('"rule": "dare"', '"name": "one"', '"weight": 0.5', '"seed": 7', '"density": 0.5'):
        assert word in got.metadata["lineage"]
