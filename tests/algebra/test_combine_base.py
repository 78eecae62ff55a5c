"""What depends on the base's weights, or replaces them, combined by what it adds to them."""

import numpy as np
import pytest
from algebra_states import module, state, update
from merge_oracles import elect, trim

from loratk import combine
from loratk.errors import ConfigError
from loratk.exchange import Checkpoint
from loratk.io import NpzStore
from loratk.plugins import default_registry

RNG = np.random.default_rng(0)
WEIGHT, CONV, NORM, BIAS = (RNG.standard_normal(shape) for shape in ((6, 4), (3, 3, 2, 8), (5,), (4,)))


@pytest.fixture
def base(tmp_path):
    """Input first, as loratk keeps weights."""
    NpzStore().write(tmp_path / "base.npz", {"x.weight": WEIGHT, "x.bias": BIAS, "c.weight": CONV, "n.weight": NORM}, {})
    with Checkpoint(tmp_path / "base.npz", default_registry().stores) as opened:
        yield opened


def dora(seed=1, name="dora", **more):
    record, held = module(seed, **more)
    magnitude = np.abs(np.random.default_rng(seed).standard_normal(record["shape"][1])) + 0.5
    return state({"x": (record | {"method": "dora"}, held | {"magnitude": magnitude})}, name)


def dora_delta(adapter):
    moved = WEIGHT + update(adapter, "x")
    return moved / np.linalg.norm(moved, axis=0) * adapter.tensors["x.magnitude"] - WEIGHT


def close(got, want, tolerance=1e-10):
    np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance * np.abs(want).max())


@pytest.mark.parametrize("rule", ["sum", "svd", "magnitude_prune"])
def test_dora_counts_by_what_it_does_to_the_weight(base, rule):
    one, plain = dora(), state({"x": module(2)}, "plain")
    options = {"density": 1.0} if rule == "magnitude_prune" else {}
    got = combine([one, plain], [0.5, 1.0], rule=rule, options=options, base=base, energy=1.0)
    close(update(got.state, "x"), 0.5 * dora_delta(one) + update(plain, "x"))
    assert got.state.modules["x"]["method"] == "lora"
    assert got.against_sum.error < 1e-9


def test_dora_is_rounded_to_a_rank_with_its_error(base):
    got = combine([dora()], rule="svd", base=base, rank=2)
    s = np.linalg.svd(dora_delta(dora()), compute_uv=False)
    assert got.certificate.error == pytest.approx(np.linalg.norm(s[2:]) / np.linalg.norm(s))
    assert got.state.modules["x"]["rank"] == 2


def test_the_trimmed_delta_of_dora_is_the_true_one(base):
    one, two = dora(1, "one"), dora(2, "two")
    got = combine([one, two], rule="ties", options={"density": 0.4}, base=base, dense=True)
    want = elect([trim(dora_delta(one), 0.4), trim(dora_delta(two), 0.4)], [1, 1], "total")
    close(got.state.tensors["x.weight"].T, want)


@pytest.mark.parametrize("rule", ["sum", "ties"])
def test_dora_without_a_base_is_refused(rule):
    with pytest.raises(ConfigError, match=r"adapter 'dora', module 'x': it depends on the base's weight; give the base \(--base\)"):
        combine([dora(), state({"x": module(2)})], rule=rule)


def test_ia3_and_its_change_of_the_bias(base):
    factors = np.array([1.5, 0.5, 1.0, 2.0])
    record = {"method": "ia3", "layer_type": "linear", "shape": [6, 4], "orientation": "torch"}
    ia3 = state({"x": (record, {"ia3_l": factors[:, None]})}, "ia3")
    plain = state({"x": module(2)}, "plain")
    got = combine([ia3, plain], [2.0, 1.0], base=base)
    close(update(got.state, "x"), 2 * WEIGHT * (factors - 1) + update(plain, "x"))
    close(got.state.tensors["x.bias"], 2 * BIAS * (factors - 1))
    beside = state({"x": (record, {"ia3_l": factors[:, None], "bias": np.ones(4)})}, "ia3")
    close(combine([beside], [2.0], base=base).state.tensors["x.bias"], 2 * (BIAS * (factors - 1) + 1))


def whole(seed, method="full"):
    rng = np.random.default_rng(seed)
    held = {"x.weight": rng.standard_normal((4, 6)), "x.bias": rng.standard_normal(4)}
    record = {"method": method, "orientation": "torch"}
    return state({"x": (record, {key[2:]: array for key, array in held.items()})}, f"{method}{seed}")


def test_whole_modules_are_merged_by_their_differences_and_written_whole(base):
    one, two = whole(1), whole(2)
    got = combine([one, two], [0.5, 0.25], base=base)
    deltas = [adapter.tensors["x.weight"].T - WEIGHT for adapter in (one, two)]
    assert got.state.modules["x"]["method"] == "full"
    close(got.state.tensors["x.weight"].T, WEIGHT + 0.5 * deltas[0] + 0.25 * deltas[1])
    close(got.state.tensors["x.bias"], BIAS + 0.5 * (one.tensors["x.bias"] - BIAS) + 0.25 * (two.tensors["x.bias"] - BIAS))
    assert got.certificate.error < 1e-12
    trimmed = combine([one, two], rule="ties", options={"density": 0.3}, base=base)
    close(trimmed.state.tensors["x.weight"].T - WEIGHT, elect([trim(delta, 0.3) for delta in deltas], [1, 1], "total"))


def test_whole_modules_without_a_base_are_refused_but_differences_are_not(base):
    with pytest.raises(ConfigError, match=r"adapter 'full1', module 'x': it depends on the base's weight"):
        combine([whole(1), whole(2)])
    got = combine([whole(1, "diff"), whole(2, "diff")], [2.0, 1.0])
    assert got.state.modules["x"] == {"method": "diff", "orientation": "torch"}
    close(got.state.tensors["x.weight"], 2 * whole(1).tensors["x.weight"] + whole(2).tensors["x.weight"])
    close(got.state.tensors["x.bias"], 2 * whole(1).tensors["x.bias"] + whole(2).tensors["x.bias"])


def test_a_difference_and_factors_make_a_difference():
    plain = state({"x": module(2)}, "plain")
    got = combine([whole(1, "diff"), plain], [2.0, 1.0])
    assert got.state.modules["x"]["method"] == "diff"
    close(got.state.tensors["x.weight"].T, 2 * whole(1).tensors["x.weight"].T + update(plain, "x"))


def test_norms_and_convolutions_that_are_replaced(base):
    rng = np.random.default_rng(5)
    norm, conv = rng.standard_normal(5), rng.standard_normal((8, 2, 3, 3))
    record = {"method": "full", "orientation": "torch"}
    one = state({"n": (record, {"weight": norm}), "c": (record, {"weight": conv})}, "one")
    got = combine([one], [0.5], base=base)
    close(got.state.tensors["n.weight"], (NORM + norm) / 2)
    close(got.state.tensors["c.weight"], (CONV.transpose(3, 2, 0, 1) + conv) / 2)


def test_dense_results_lie_as_torch_keeps_them():
    conv = state({"c": module(1, d=18, k=8, layer_type="conv2d", kernel=[3, 3])}, "conv")
    got = combine([conv], [0.5], dense=True).state.tensors["c.weight"]
    close(got.transpose(2, 3, 1, 0).reshape(18, 8), 0.5 * update(conv, "c"))
    table = state({"wte": module(1, layer_type="embedding")}, "table")
    close(combine([table], dense=True).state.tensors["wte.weight"], update(table, "wte"))


@pytest.mark.parametrize(
    ("modules", "want"),
    [
        ({"x": module(1, experts=2)}, "module 'x': it is a stack of experts, which cannot be kept dense; ask for a rank"),
        ({"x": module(1, columns=[0, 4])}, "module 'x': it is a block of a fused projection, which cannot be kept dense"),
        ({"x": module(1, layer_type="einsum", kernel=[6, 2, 2])}, "module 'x': it is an einsum kernel, which cannot be kept dense"),
        ({"odd": module(1, layer_type="embedding")}, "module 'odd': it is a look-up table whose name does not tell that"),
    ],
)
def test_what_cannot_be_kept_dense_is_refused(modules, want):
    with pytest.raises(ConfigError) as caught:
        combine([state(modules)], dense=True)
    assert want in str(caught.value)


def test_another_base_is_refused(base):
    with pytest.raises(ConfigError, match=r"were made for another base than .*base\.npz'; pass any_base=True"):
        combine([state({"x": module(1)}, fingerprint="0" * 64)], base=base)
    assert combine([state({"x": module(1)}, fingerprint="0" * 64)], base=base, any_base=True).certificate.error < 1e-12


@pytest.mark.parametrize("rule", ["sum", "ties"])
def test_what_an_init_took_off_the_base_and_a_learned_gain_count(rule):
    """An adapter that began as PiSSA mixes with others: what it adds is its product less the first one."""
    (record, held), (_, first) = module(1), module(7)
    moved = state({"x": (record, held | {"initial_A": first["lora_A"], "initial_B": first["lora_B"]})}, "moved")
    gained = state({"x": (record | {"method": "lora_gain"}, held | {"gain": np.array([1.5])})}, "gained")
    products = [record["scaling"] * pair["lora_A"] @ pair["lora_B"] for pair in (held, first)]
    got = combine([moved, gained], [0.5, 2.0], rule=rule, options={"density": 1.0} if rule == "ties" else {}, energy=1.0)
    truth = [products[0] - products[1], 1.5 * products[0]]
    close(update(got.state, "x"), elect(truth, [0.5, 2.0], "total") if rule == "ties" else 0.5 * truth[0] + 2 * truth[1])
    assert got.state.modules["x"]["method"] == "lora"
