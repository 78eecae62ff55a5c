"""What rounding takes of an update: told as NumPy counts it, and on average nothing where it is by chance."""

import math

import numpy as np
import pytest
from merge_files import adapter, base_file, bits, numbers, update

import loratk
from loratk.errors import ConfigError
from loratk.exchange import AdapterState
from loratk.exchange.transform import round_bfloat16
from loratk.io import write_safetensors


def large(tmp_path, update_size, dtype="bfloat16", side=1024, rank=16):
    """A weight ~ N(0, 0.02) of a dtype, and an adapter whose update has entries of some size."""
    rng = np.random.default_rng(0)
    weight = (0.02 * rng.standard_normal((side, side))).astype(np.float32)
    weight = round_bfloat16(weight) if dtype == "bfloat16" else weight.astype(dtype)
    write_safetensors(tmp_path / "base.safetensors", {"a.weight": weight}, {}, ["a.weight"] if dtype == "bfloat16" else ())
    a, b = rng.standard_normal((side, rank)), rng.standard_normal((rank, side)) * update_size / math.sqrt(rank)
    record = {"method": "lora", "rank": rank, "alpha": float(rank), "scaling": 1.0, "shape": [side, side]}
    tensors = {"a.lora_A": a.astype(np.float32), "a.lora_B": b.astype(np.float32)}
    return tmp_path / "base.safetensors", AdapterState("mine", {}, tensors, {"a": record}), weight.astype(np.float64), tensors


def test_the_example_of_bfloat16(tmp_path):
    """W ~ N(0, 0.02) and an update of 2e-5: 77.7 % of the weights do not change."""
    base, state, _, _ = large(tmp_path, 2e-5, rank=64)
    done = loratk.merge(base, state, tmp_path / "out.safetensors")
    assert done.rounding.moved == 1 << 20
    assert done.rounding.kept_share == pytest.approx(0.777, abs=0.003)
    assert done.rounding.update == pytest.approx(2e-5 * 1024, rel=0.02)
    assert any("77." in note and "are as before" in note for note in done.notes)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("size", [1e-6, 1e-4, 1e-2, 1e-30])
def test_counts_and_norms_are_those_of_numpy(tmp_path, dtype, size):
    base, state, own, tensors = large(tmp_path, size, dtype, side=200)
    (found,) = loratk.merge(base, state, tmp_path / "out.safetensors").changed
    delta = (tensors["a.lora_A"].astype(np.float64) @ tensors["a.lora_B"]).T
    got = numbers(tmp_path / "out.safetensors")["a.weight"].astype(np.float64)
    assert found.rounding.moved == np.count_nonzero(delta)
    assert found.rounding.kept == np.count_nonzero(got == own)
    assert found.rounding.update == pytest.approx(np.linalg.norm(delta), rel=1e-5)
    assert found.rounding.lost == pytest.approx(np.linalg.norm(got - own - delta), rel=1e-5)


def test_by_other_ways_the_report_is_the_same(tmp_path):
    """A method that is computed as a whole, against the same update as a product."""
    base = base_file(tmp_path / "base.safetensors", "bfloat16")
    plain = adapter(size=1e-3, modules={"a": (4, 5)})
    other = AdapterState("mine", {}, {"a.weight": update(plain, "a")}, {"a": {"method": "diff", "orientation": "torch"}})
    one, two = (loratk.merge(base, state, tmp_path / f"{n}.safetensors").rounding for n, state in enumerate((plain, other)))
    assert (one.moved, one.kept) == (two.moved, two.kept)
    np.testing.assert_allclose([one.update, one.lost], [two.update, two.lost], rtol=1e-5)


def test_arrays_together(tmp_path):
    done = loratk.merge(base_file(tmp_path / "base.safetensors", "bfloat16"), adapter(size=1e-3), tmp_path / "out.safetensors")
    parts = [array.rounding for array in done.changed]
    assert len(parts) == 2
    assert done.rounding.kept == sum(part.kept for part in parts)
    assert done.rounding.update == pytest.approx(math.hypot(*(part.update for part in parts)))
    assert done.rounding.lost == pytest.approx(math.hypot(*(part.lost for part in parts)))
    assert done.rounding.lost_share == done.rounding.lost / done.rounding.update


def test_by_chance_an_update_counts_that_is_too_small_for_any_weight(tmp_path):
    """The sum over all weights moves by the sum of the update, to some standard errors; rounding to nearest keeps most as they are."""
    base, _, own, _ = large(tmp_path, 1e-5, side=600)
    ones = {"a.lora_A": np.ones((600, 1), np.float32), "a.lora_B": np.full((1, 600), 1e-5, np.float32)}
    state = AdapterState("mine", {}, ones, {"a": {"method": "lora", "rank": 1, "alpha": 1.0, "scaling": 1.0, "shape": [600, 600]}})
    moves = {}
    for name, stochastic in (("nearest", False), ("chance", True)):
        loratk.merge(base, state, tmp_path / f"{name}.safetensors", stochastic=stochastic)
        moved = numbers(tmp_path / f"{name}.safetensors")["a.weight"].astype(np.float64) - own
        moves[name] = moved.mean(), moved.std() / 600
    mean, error = moves["chance"]
    assert abs(mean - 1e-5) < 4 * error
    assert error < 1e-6
    assert moves["nearest"][0] < 0.9e-5


def test_the_seed_decides_and_nothing_else(tmp_path):
    base = base_file(tmp_path / "base.safetensors", "bfloat16")
    out = [tmp_path / f"{n}.safetensors" for n in range(3)]
    for path, seed in zip(out, (1, 1, 2), strict=True):
        done = loratk.merge(base, adapter(), path, stochastic=True, seed=seed)
        assert done.adapters[0].name == "mine"
    assert out[0].read_bytes() == out[1].read_bytes()
    assert bits(out[0]) != bits(out[2])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_other_dtypes_are_rounded_by_chance_too(tmp_path, dtype):
    """Also the arrays that no adapter changes: each becomes one of its two neighbours, and the mean is right."""
    base = {"a.weight": np.zeros((4, 5)), "other": np.full(100_000, 1 + 0.3 * 2.0 ** -(7 if dtype == "bfloat16" else 10))}
    write_safetensors(tmp_path / "base.safetensors", base, {})
    loratk.merge(tmp_path / "base.safetensors", adapter(modules={"a": (5, 4)}), tmp_path / "o.safetensors", dtype=dtype, stochastic=True)
    got = numbers(tmp_path / "o.safetensors")["other"].astype(np.float64)
    assert len(set(got)) == 2
    assert abs(got.mean() - base["other"][0]) < 4 * got.std() / math.sqrt(100_000)


def test_draws_differ_between_arrays_and_places_but_not_with_blocks(tmp_path, monkeypatch):
    """Equal arrays of equal numbers: neither are two arrays alike, nor two blocks of one, and the size of the blocks does not show."""
    base = {
        "a.weight": np.full((5, 4), 1 + 2.0**-9, np.float32),
        "x": np.full(64, 1 + 2.0**-9, np.float32),
        "y": np.full(64, 1 + 2.0**-9, np.float32),
    }
    write_safetensors(tmp_path / "base.safetensors", base, {})
    state = AdapterState("mine", {}, {"a.weight": np.full((5, 4), 1e-3)}, {"a": {"method": "diff", "orientation": "torch"}})
    found = []
    for block in (1 << 18, 16):
        monkeypatch.setattr("loratk.convert.whole.BLOCK", block)
        out = tmp_path / f"{block}.safetensors"
        loratk.merge(tmp_path / "base.safetensors", state, out, dtype="bfloat16", stochastic=True)
        found.append(bits(out))
    assert found[0] == found[1]
    x, y = (found[0][name][2] for name in "xy")
    assert x != y
    assert x[:32] != x[32:64] != x[64:96]


def test_where_nothing_is_rounded_chance_is_refused(tmp_path):
    base = base_file(tmp_path / "base.safetensors", "float64")
    with pytest.raises(ConfigError, match="stochastic rounding would have no effect"):
        loratk.merge(base, adapter(), tmp_path / "out.safetensors", stochastic=True)


@pytest.mark.parametrize("stochastic", [False, True])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_numbers_too_large_are_named_and_nothing_is_written(tmp_path, stochastic, dtype):
    base = base_file(tmp_path / "base.safetensors", dtype)
    state = adapter(size=1e20 if dtype == "float16" else 1e38, scaling=1e6)
    with pytest.raises(loratk.LoratkError, match=f"'a.weight' holds .*, which is too large for {dtype}") as caught:
        loratk.merge(base, state, tmp_path / "out.safetensors", stochastic=stochastic)
    assert "'b.weight'" in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["base.safetensors"]
