"""Sums of adapters against dense sums."""

import json

import numpy as np
import pytest
from algebra_states import beside, module, state, update
from hypothesis import given, settings
from hypothesis import strategies as st

from loratk.algebra.sums import add, average, negate, scale, subtract
from loratk.errors import ConfigError
from loratk.exchange import load_adapter, save_adapter
from loratk.exchange.hub import state_faults
from loratk.exchange.transform import cast

CONV = {"layer_type": "conv2d", "kernel": [3, 3], "d": 18, "k": 8}
KINDS = {
    "linear": {},
    "conv": CONV,
    "grouped": CONV | {"groups": 2},
    "experts": {"experts": 3},
    "embedding": {"layer_type": "embedding", "d": 11},
    "block": {"columns": [4, 8]},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rslora", [False, True])
def test_a_weighted_sum_is_the_dense_sum_whatever_ranks_and_scalings(kind, rslora):
    a = state({"x": module(1, rank=2, alpha=3, **KINDS[kind])}, "a")
    b = state({"x": module(2, rank=4, alpha=5, rslora=rslora, **KINDS[kind])}, "b")
    done = add([a, b], [0.5, -2.0])
    np.testing.assert_allclose(update(done.state, "x"), 0.5 * update(a, "x") - 2 * update(b, "x"), rtol=1e-12, atol=1e-12)
    assert not list(state_faults([done.state]))
    record = done.state.modules["x"]
    assert record["rank"] == record["alpha"] == done.certificate.modules["x"].rank
    assert record["scaling"] == 1
    for key, value in KINDS[kind].items():
        assert key in ("d", "k") or record[key] == value
    assert done.certificate.error < 1e-14
    assert done.certificate.norm == pytest.approx(np.linalg.norm(update(done.state, "x")))


@given(st.integers(1, 5), st.integers(1, 5), st.lists(st.tuples(st.integers(1, 4), st.floats(-3, 3)), min_size=1, max_size=4))
@settings(max_examples=60, deadline=None)
def test_sums_of_any_shape_have_no_more_rank_than_the_weight(d, k, terms):
    states = [state({"x": module(seed, d=d, k=k, rank=rank)}, str(seed)) for seed, (rank, _) in enumerate(terms)]
    done = add(states, [weight for _, weight in terms])
    want = sum(weight * update(one, "x") for one, (_, weight) in zip(states, terms, strict=True))
    np.testing.assert_allclose(update(done.state, "x"), want, atol=1e-12)
    assert done.state.modules["x"]["rank"] == min(sum(rank for rank, _ in terms), d, k) or sum(rank for rank, _ in terms) <= min(d, k)


def test_modules_of_one_adapter_only_count_as_zero_in_the_other():
    a, b = state({"x": module(1), "y": module(2)}, "a"), state({"x": module(3), "z": module(4)}, "b")
    done = subtract(a, b).state
    assert list(done.modules) == ["x", "y", "z"]
    np.testing.assert_allclose(update(done, "x"), update(a, "x") - update(b, "x"), atol=1e-13)
    np.testing.assert_allclose(update(done, "y"), update(a, "y"), atol=1e-13)
    np.testing.assert_allclose(update(done, "z"), -update(b, "z"), atol=1e-13)


def test_average_scale_and_negation():
    a, b = state({"x": module(1)}, "a"), state({"x": module(2, rank=3)}, "b")
    np.testing.assert_allclose(update(average([a, b]).state, "x"), (update(a, "x") + update(b, "x")) / 2, atol=1e-13)
    assert [average([a, b]).state.name, average([a, a]).state.name, average([a, b], name="c").state.name] == ["average", "a", "c"]
    half = scale(a, 0.5).state
    np.testing.assert_allclose(update(half, "x"), update(a, "x") / 2, atol=1e-14)
    assert (half.name, half.modules["x"]["rank"]) == ("a", 2)
    np.testing.assert_array_equal(negate(a).state.tensors["x.lora_A"], a.tensors["x.lora_A"])
    np.testing.assert_allclose(update(negate(a).state, "x"), -update(a, "x"), atol=1e-14)
    zero = add([a, negate(a).state])
    assert zero.certificate.norm == zero.certificate.error == 0


def test_a_sum_can_be_rounded_and_says_what_that_costs():
    a, b = state({"x": module(1, d=20, k=15, rank=4)}, "a"), state({"x": module(2, d=20, k=15, rank=4)}, "b")
    whole = update(a, "x") + update(b, "x")
    values = np.linalg.svd(whole, compute_uv=False)
    done = add([a, b], rank=3)
    lost = np.linalg.norm(values[3:]) / np.linalg.norm(values)
    entry = done.certificate.modules["x"]
    assert entry.rank == done.state.modules["x"]["rank"] == 3
    assert entry.error == pytest.approx(lost)
    assert entry.energy == pytest.approx(1 - lost**2)
    assert np.linalg.norm(update(done.state, "x") - whole) / np.linalg.norm(whole) == pytest.approx(lost)


def test_biases_and_differences_are_added_with_their_scaling():
    a = state({"x": beside(module(1), bias=[1, 2, 3, 4], lora_bias=[1, 0, 0, 1])}, "a")  # scaling 2
    b = state({"x": beside(module(2, rank=4), lora_bias=[5, 5, 5, 5]), "n": ({"method": "diff"}, {"weight": np.ones(3)})}, "b")
    done = add([a, b], [2, 3]).state
    np.testing.assert_allclose(done.tensors["x.bias"], [2, 4, 6, 8])
    np.testing.assert_allclose(done.tensors["x.lora_bias"] * done.modules["x"]["scaling"], [4 + 15, 15, 15, 4 + 15])
    np.testing.assert_allclose(done.tensors["n.weight"], [3, 3, 3])
    assert done.modules["n"]["method"] == "diff"
    biases = state({"x": ({"method": "bias"}, {"bias": np.ones(4)})}, "c")
    np.testing.assert_allclose(add([a, biases]).state.tensors["x.bias"], [2, 3, 4, 5])
    assert add([biases, biases]).state.modules["x"] == {"method": "bias"}


def test_whole_modules_need_weights_that_sum_to_one():
    a, b = (state({"n": ({"method": "full", "orientation": "torch"}, {"weight": np.full(3, value)})}, str(value)) for value in (1.0, 5.0))
    done = average([a, b]).state
    np.testing.assert_allclose(done.tensors["n.weight"], [3, 3, 3])
    assert done.modules["n"] == {"method": "full", "orientation": "torch"}
    with pytest.raises(ConfigError, match=r"module 'n': it replaces the base's parameters, so its weights must sum to 1, found 2"):
        add([a, b])
    with pytest.raises(ConfigError, match="found -1"):
        negate(a)


def test_half_precision_stays_where_it_is_exact_and_becomes_float32_elsewhere():
    (half,) = cast([state({"x": module(1, rank=2, alpha=2), "y": module(2, rank=2, alpha=3)}, "a")], "bfloat16")
    done = add([half, half], [1, 2]).state
    assert done.modules["x"]["dtypes"] == {"lora_A": "bfloat16", "lora_B": "bfloat16"}
    assert done.modules["y"]["dtypes"] == {"lora_A": "bfloat16"}
    assert {array.dtype.name for array in done.tensors.values()} == {"float32"}
    np.testing.assert_allclose(update(done, "y"), 3 * update(half, "y"), rtol=1e-6, atol=1e-6)
    (other,) = cast([state({"x": module(3)}, "b")], "float16")
    mixed = add([half, other]).state
    assert {mixed.tensors[f"x.{key}"].dtype.name for key in ("lora_A", "lora_B")} == {"float32"}
    assert "dtypes" not in mixed.modules["x"]
    rounded = add([half, half], [1, 0.3], rank=1).state
    assert rounded.modules["y"]["dtypes"] == {"lora_A": "bfloat16", "lora_B": "bfloat16"}


def test_the_metadata_keep_the_lineage_and_what_nobody_contradicts():
    a = state({"x": module(1)}, "a", metadata={"task": "one", "lang": "de"})
    b = state({"x": module(2)}, "b", metadata={"task": "two", "lang": "de"})
    done = add([subtract(a, b).state, b], [2, 0.5])
    assert done.state.metadata["lang"] == "de"
    assert "task" in done.state.metadata  # the difference has lost it, so only b says it
    assert json.loads(done.state.metadata["lineage"]) == {
        "rule": "sum",
        "adapters": [
            {"name": "difference", "weight": 2.0,
             "lineage": {"rule": "difference", "adapters": [{"name": "a", "weight": 1.0}, {"name": "b", "weight": -1.0}]}},
            {"name": "b", "weight": 0.5},
        ],
    }  # fmt: skip
    assert subtract(a, b).notes == ["metadata 'task' are not the same in all adapters, and were left out"]


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (state({"x": beside(module(2), magnitude=[1, 1, 1, 1])}, "b"), "adapter 'b', module 'x': a DoRA magnitude is not linear"),
        (state({"x": ({"method": "odd"}, {"w": np.ones(3)})}, "b"), "cannot add parameters 'w' of the method 'odd'"),
        (state({"x": module(2, d=7)}, "b"), r"module 'x': shape \[6, 4\] and \[7, 4\]"),
        (state({"x": module(2, groups=2)}, "b"), "groups 1 and 2"),
        (state({"x": module(2, experts=3)}, "b"), "1 and 3 parts"),
        (state({"x": ({"method": "diff"}, {"weight": np.ones((4, 6))})}, "b"), "it is 'lora' in one adapter and 'diff' in another"),
        (state({"x": ({"method": "ia3"}, {"ia3_l": np.ones(4)})}, "b"), "'ia3' has no exact factors.*loratk.lora_of"),
        (state({"x": module(2)}, "b", fingerprint="2" * 64), "different bases.*any_base=True"),
    ],
)
def test_what_cannot_be_added_is_refused_by_name(other, said):
    a = state({"x": module(1)}, "a", fingerprint="1" * 64)
    with pytest.raises(ConfigError, match=said):
        add([a, other])


def test_other_base_weights_and_counts():
    a, b = state({"x": module(1)}, "a", fingerprint="1" * 64), state({"x": module(2)}, "b", fingerprint="2" * 64)
    assert add([a, b], any_base=True).state.fingerprint == ""
    assert add([a, state({"x": module(2)}, "b")]).state.fingerprint == "1" * 64
    for states, weights in (([], None), ([a], [1, 2]), ([a], [float("nan")])):
        with pytest.raises(ConfigError, match="a finite weight for each"):
            add(states, weights)


def test_exact_factors_of_other_methods_are_added():
    rng = np.random.default_rng(0)
    held = {key: rng.standard_normal(shape) for key, shape in (
        ("hada_w1_a", (4, 2)), ("hada_w1_b", (2, 6)), ("hada_w2_a", (4, 2)), ("hada_w2_b", (2, 6)))}  # fmt: skip
    loha = state({"x": ({"method": "loha", "shape": [6, 4], "rank": 2, "alpha": 1.0, "scaling": 0.5, "orientation": "torch"}, held)}, "h")
    want = 0.5 * ((held["hada_w1_a"] @ held["hada_w1_b"]) * (held["hada_w2_a"] @ held["hada_w2_b"])).T
    done = add([loha, state({"x": module(1)}, "a")], [2, 1]).state
    np.testing.assert_allclose(update(done, "x"), 2 * want + update(state({"x": module(1)}), "x"), atol=1e-12)
    assert "orientation" not in done.modules["x"]


@pytest.mark.parametrize("where", ["peft", "sum.h5", "sum.npz", "sum.safetensors"])
def test_a_sum_survives_files(tmp_path, where):
    pairs = {"q": module(1, dtype=np.float32, rslora=True), "v": module(2, dtype=np.float32, rank=3)}
    done = add([state(pairs, "a"), state({"q": module(5, dtype=np.float32)}, "b")], [1, -0.7]).state
    path = tmp_path / where
    save_adapter(path, done, format={"peft": "peft", "sum.safetensors": "safetensors"}.get(where))
    (back,) = load_adapter(path).states
    for name in ("q", "v"):
        np.testing.assert_allclose(update(back, name), update(done, name), rtol=1e-6, atol=1e-6)
