"""Ranks of adapters by rules, against dense decompositions."""

import json

import numpy as np
import pytest
from algebra_states import beside, known, module, state, update

from loratk.algebra.ranks import Rule
from loratk.algebra.truncation import truncate
from loratk.errors import ConfigError
from loratk.exchange.hub import state_faults
from loratk.exchange.transform import cast


def of(values, alpha=3.0, seed=3, **record):
    """A module whose update has these singular values."""
    a, b = known(values, seed=seed)
    rank = len(values)
    facts = {"method": "lora", "layer_type": "linear", "shape": [40, 30], "rank": rank, "alpha": alpha, "scaling": alpha / rank}
    return facts | record, {"lora_A": a, "lora_B": b * rank / alpha}


def test_each_module_gets_the_rank_that_its_spectrum_needs():
    adapter = state({"flat": of([1.0, 1.0, 1.0, 1.0]), "steep": of([8.0, 1.0, 0.1, 0.01])})
    done = truncate(adapter, energy=0.9)
    assert {name: record["rank"] for name, record in done.state.modules.items()} == {"flat": 4, "steep": 1}
    want = (1.0101 / 65.0101) ** 0.5
    assert done.certificate.modules["steep"].error == pytest.approx(want)
    assert done.certificate.norm == pytest.approx((4 + 65.0101) ** 0.5)
    assert done.certificate.error == pytest.approx((1.0101 / 69.0101) ** 0.5)
    assert done.certificate.energy == pytest.approx(1 - 1.0101 / 69.0101)
    assert not list(state_faults([done.state]))


def test_the_update_stays_as_it_was_whatever_alpha_said():
    for record in ({}, {"alpha": 64.0, "scaling": 64.0 / 2}, {"alpha": 1.0, "scaling": 2**-0.5}):
        pair = of([2.0, 1.0])
        adapter = state({"x": ({**pair[0], **record}, pair[1])})
        done = truncate(adapter, rank=2).state
        np.testing.assert_allclose(update(done, "x"), update(adapter, "x"), atol=1e-12)
        assert (done.modules["x"]["alpha"], done.modules["x"]["scaling"], done.modules["x"]["rank"]) == (2.0, 1.0, 2)


@pytest.mark.parametrize("kind", [{"groups": 2}, {"experts": 3}, {"groups": 4, "rank": 8}])
def test_groups_and_experts_share_a_rank(kind):
    adapter = state({"x": module(1, **({"d": 9, "k": 8, "rank": 6} | kind))})
    done = truncate(adapter, error=0.3)
    whole, got = update(adapter, "x"), update(done.state, "x")
    assert np.linalg.norm(whole - got) <= 0.3 * np.linalg.norm(whole)
    assert done.certificate.modules["x"].error == pytest.approx(np.linalg.norm(whole - got) / np.linalg.norm(whole), abs=1e-12)
    assert not list(state_faults([done.state]))
    groups = kind.get("groups", 1)
    rank = done.state.modules["x"]["rank"]
    assert rank % groups == 0
    if rank > groups:  # one less for each part breaks the bound
        less = truncate(adapter, rank=rank - groups).state
        assert np.linalg.norm(whole - update(less, "x")) > 0.3 * np.linalg.norm(whole)


def test_patterns_decide_before_the_default_and_the_first_counts():
    adapter = state({f"b.{n}.{part}": of([4.0, 2.0, 1.0, 0.5], seed=n) for n in (0, 1) for part in ("q", "v")})
    done = truncate(adapter, rank=1, patterns={"b.0.*": Rule(rank=2), "v": Rule(ratio=0.25)}).state
    assert {name: record["rank"] for name, record in done.modules.items()} == {"b.0.q": 2, "b.0.v": 2, "b.1.q": 1, "b.1.v": 3}
    kept = truncate(adapter, rank=1, patterns={"q": None}).state
    assert {record["rank"] for name, record in kept.modules.items() if name.endswith("q")} == {4}
    np.testing.assert_array_equal(kept.tensors["b.0.q.lora_A"], adapter.tensors["b.0.q.lora_A"])
    assert json.loads(kept.metadata["lineage"]) == {
        "rule": "truncate", "adapters": [{"name": "mine"}], "rank": 1, "patterns": {"q": None},
    }  # fmt: skip
    with pytest.raises(ConfigError, match=r"'w' matches no module\n.*'b.0.v' decides about no module"):
        truncate(adapter, patterns={"v": Rule(rank=1), "w": Rule(rank=2), "b.0.v": Rule(rank=3)})
    with pytest.raises(ConfigError, match="no regular expression"):
        truncate(adapter, patterns={"re:(": Rule(rank=1)})


def test_a_rank_is_a_cap_and_grows_only_when_asked():
    adapter = state({"x": of([4.0, 2.0]), "zero": (of([1.0, 1.0])[0], {"lora_A": np.ones((40, 2)), "lora_B": np.zeros((2, 30))})})
    assert {record["rank"] for record in truncate(adapter, rank=5).state.modules.values()} == {2}
    done = truncate(adapter, rank=5, grow=True)
    assert {record["rank"] for record in done.state.modules.values()} == {5}
    np.testing.assert_allclose(update(done.state, "x"), update(adapter, "x"), atol=1e-12)
    assert done.certificate.error == 0
    assert "module 'x': grown from rank 2 with zeros in both factors, which training does not move" in done.notes
    assert truncate(adapter, energy=0.9).certificate.modules["zero"].rank == 1


def test_a_cap_that_cuts_what_a_rule_asks_for_is_told():
    adapter = state({"x": of([1.0, 1.0, 1.0]), "y": of([9.0, 0.1])})
    assert truncate(adapter, energy=0.99, rank=2).notes == ["module 'x': its other rules ask for more than rank 2"]
    grouped = state({"x": module(1, groups=2, rank=4)})
    assert truncate(grouped, rank=1).notes == ["module 'x': rank 2, as each of its 2 groups needs one"]


def test_dtypes_stay_and_their_rounding_is_in_the_error():
    (half,) = cast([state({"x": of([4.0, 2.0, 1.0])})], "bfloat16")
    done = truncate(half, rank=3)
    assert done.state.modules["x"]["dtypes"] == {"lora_A": "bfloat16", "lora_B": "bfloat16"}
    error = np.linalg.norm(update(done.state, "x") - update(half, "x")) / np.linalg.norm(update(half, "x"))
    assert 1e-4 < error < 1e-2
    assert done.certificate.error == pytest.approx(error)
    wide = state({"x": (of([1.0])[0], {key: (array * 1e3).astype(np.float16) for key, array in of([1.0])[1].items()})})
    assert truncate(wide, rank=1).state.tensors["x.lora_A"].dtype == np.float16


def test_numbers_too_large_for_the_dtype_are_refused():
    record, _held = of([1.0])
    large = {"lora_A": np.full((40, 1), 6e4, np.float16), "lora_B": np.full((1, 30), 6e4, np.float16)}
    with pytest.raises(ConfigError, match=r"module 'x': 'lora_A' holds .* too large for float16"):
        truncate(state({"x": ({**record, "scaling": 1e6}, large)}), rank=1)


def test_dora_keeps_its_magnitude_and_other_modules_stay():
    record, held = of([4.0, 2.0, 1.0])
    adapter = state({
        "x": ({**record, "method": "dora"}, held | {"magnitude": np.arange(30.0)}),
        "y": beside(of([2.0, 1.0]), bias=np.arange(30.0), lora_bias=np.ones(30)),
        "n": ({"method": "full", "orientation": "torch"}, {"weight": np.ones(5)}),
        "b": ({"method": "bias"}, {"bias": np.ones(5)}),
    })  # fmt: skip
    done = truncate(adapter, rank=1).state
    assert done.modules["x"]["method"] == "dora"
    np.testing.assert_array_equal(done.tensors["x.magnitude"], np.arange(30.0))
    np.testing.assert_allclose(done.tensors["y.lora_bias"], adapter.modules["y"]["scaling"])
    np.testing.assert_array_equal(done.tensors["y.bias"], np.arange(30.0))
    assert done.modules["n"] == {"method": "full", "orientation": "torch"}
    assert done.modules["b"] == {"method": "bias"}


def test_configs_follow_the_new_ranks():
    config = {"rank": 3, "alpha": 3.0, "targets": ["x"], "method": "lora"}
    done = truncate(state({"x": of([4.0, 2.0, 1.0])}, config=config), rank=2).state
    assert (done.config["rank"], done.config["alpha"]) == (2, 2.0)


def test_methods_without_exact_factors_are_refused_unless_left_alone():
    adapter = state({"x": ({"method": "odd", "rank": 2}, {"w": np.ones(4)}), "y": of([2.0, 1.0])})
    with pytest.raises(ConfigError, match=r"cannot be resized:\n.*module 'x': loratk cannot add parameters 'w' of the method 'odd'"):
        truncate(adapter, rank=1)
    done = truncate(adapter, rank=1, patterns={"x": None})
    assert done.state.modules["x"] == {"method": "odd", "rank": 2}
    assert list(done.certificate.modules) == ["y"]


def test_what_has_no_rank_stays_and_is_told():
    ia3 = {"x": ({"method": "ia3"}, {"ia3_l": np.ones(4)})}
    done = truncate(state(ia3 | {"y": of([2.0, 1.0])}), rank=1)
    assert done.state.modules["x"] == {"method": "ia3"}
    assert done.notes == ["module 'x' stays as it is: ia3 has no rank"]
    with pytest.raises(ConfigError, match="has no module with a rank, only 'ia3'"):
        truncate(state(ia3), rank=1)


def test_blocks_on_the_diagonal_of_lora_b_stay_blocks():
    record, held = module(1, d=9, k=8, rank=6, layer_type="conv2d", kernel=[3, 3])
    mask = np.kron(np.eye(2), np.ones((3, 4)))
    adapter = state({"x": (record | {"peft_groups": 2}, held | {"lora_B": held["lora_B"] * mask})})
    done = truncate(adapter, rank=4)
    whole, got = update(adapter, "x"), update(done.state, "x")
    for columns in (slice(0, 4), slice(4, 8)):
        values = np.linalg.svd(whole[:, columns], compute_uv=False)
        assert np.linalg.norm(whole[:, columns] - got[:, columns]) == pytest.approx(values[2])
    assert not (done.state.tensors["x.lora_B"] * (1 - np.kron(np.eye(2), np.ones((2, 4))))).any()
    assert done.certificate.error == pytest.approx(np.linalg.norm(whole - got) / np.linalg.norm(whole))
