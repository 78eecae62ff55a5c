"""Adapters merged into checkpoints of every store, dtype and shape: the numbers are those that float64 gives, and nothing else changes."""

import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from merge_files import ADAPTED, KINDS, RECORD, SHAPES, STORES, adapter, arrays, base_file, base_folder, bits, numbers, update

import loratk
from loratk.convert.ledger import LEDGER
from loratk.errors import ConfigError
from loratk.exchange import AdapterState
from loratk.exchange.transform import round_bfloat16
from loratk.io import find_store, open_safetensors, write_safetensors
from loratk.kernels.runtime import num_threads


def rounded(array, dtype):
    return round_bfloat16(array) if dtype == "bfloat16" else array.astype(dtype)


def step(array, dtype):
    """The distance of neighbours of a dtype at each number."""
    digits = {"bfloat16": 7, "float16": 10, "float32": 23, "float64": 52}[dtype]
    return 2.0 ** (np.floor(np.log2(np.abs(array))) - digits)


def assert_merged(got, base, updates, dtype="float32"):
    """Changed arrays are the nearest numbers to base + update, but for one neighbour where sums are float32; others are as before."""
    for name, array in got.items():
        if name not in updates:
            np.testing.assert_array_equal(array, base[name], strict=True)
            continue
        want = base[name].astype(np.float64) + updates[name]
        off = np.abs(array - rounded(want, dtype).astype(np.float64))
        assert (off <= step(want, dtype)).all()
        assert np.count_nonzero(off) <= 1
        assert not np.array_equal(array, base[name])


@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize("make", [base_file, base_folder])
def test_safetensors_in_every_dtype(tmp_path, dtype, make):
    base = make(tmp_path / ("base.safetensors" if make is base_file else "base"), dtype)
    out = tmp_path / ("out.safetensors" if make is base_file else "out")
    done = loratk.merge(base, adapter(), out)
    assert_merged(numbers(out), arrays(dtype), {f"{name}.weight": update(adapter(), name) for name in "ab"}, dtype)
    kinds = {name: kind for name, (kind, _, _) in bits(base).items()}
    assert {name: kind for name, (kind, _, _) in bits(out).items()} == kinds
    assert [array.name for array in done.changed] == ["a.weight", "b.weight"]
    assert (done.arrays, done.written, done.path) == (len(kinds), True, out)
    assert [path.name for path in tmp_path.iterdir() if path.name not in (base.name, out.name)] == []


@pytest.mark.parametrize("source", ["safetensors", "h5", "npz"])
@pytest.mark.parametrize("end", ["safetensors", "h5", "npz"])
def test_from_each_store_to_each(tmp_path, source, end):
    base = base_file(tmp_path / f"base.{source}")
    loratk.merge(base, adapter(), tmp_path / f"out.{end}", order="output-first")
    assert_merged(numbers(tmp_path / f"out.{end}"), arrays(), {f"{name}.weight": update(adapter(), name) for name in "ab"})
    strings = find_store(tmp_path / f"out.{end}", STORES).read(tmp_path / f"out.{end}", ()).strings
    assert strings["note"] == "kept"
    assert LEDGER in strings


def test_a_folder_of_shards_into_one_file(tmp_path):
    base_folder(tmp_path / "base", "bfloat16")
    for end in ("safetensors", "npz"):
        loratk.merge(tmp_path / "base", adapter(), tmp_path / f"out.{end}")
        got, kind = numbers(tmp_path / f"out.{end}"), "bfloat16" if end == "safetensors" else "float32"
        assert_merged(got, arrays("bfloat16"), {f"{name}.weight": update(adapter(), name) for name in "ab"}, kind)


def test_a_folder_keeps_its_shards_and_what_belongs_to_them(tmp_path):
    base = base_folder(tmp_path / "base")
    done = loratk.merge(base / "model.safetensors.index.json", adapter(), tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {path.name for path in base.iterdir()} - {"pytorch_model.bin"}
    assert "copied along: config.json" in done.notes
    assert "left out: pytorch_model.bin" in done.notes
    index, old = (json.loads((folder / "model.safetensors.index.json").read_text()) for folder in (tmp_path / "out", base))
    assert index["weight_map"] == old["weight_map"]
    assert index["metadata"] == {"made_by": "test", "total_size": done.size}
    texts = set()
    for place in range(3):
        with open_safetensors(tmp_path / "out" / f"model-{place}.safetensors") as reader:
            assert reader.metadata["shard"] == str(place)
            texts.add(reader.metadata[LEDGER])
    assert len(texts) == 1


@pytest.mark.parametrize("weights", [None, [0.5, -2.0], [0.0, 1.0]])
def test_several_adapters_each_times_its_weight_and_once(tmp_path, weights):
    base = base_file(tmp_path / "base.safetensors", "float64")
    one, two = adapter("one"), adapter("two", seed=2, modules={"a": ADAPTED["a"]})
    loratk.merge(base, [one, two], tmp_path / "out.safetensors", weights=weights)
    first, second = weights or (1, 1)
    want = arrays("float64")["a.weight"] + first * update(one, "a") + second * update(two, "a")
    np.testing.assert_allclose(numbers(tmp_path / "out.safetensors")["a.weight"], want, rtol=1e-13, atol=1e-14)


def test_weights_of_parameters_that_are_no_products(tmp_path):
    """Biases, changes of whole parameters, and parameters that replace the base's, which go so far from it."""
    base = base_file(tmp_path / "base.safetensors", "float64")
    before, rng = arrays("float64"), np.random.default_rng(5)
    tensors = dict(adapter(modules={"a": (4, 5)}).tensors) | {"a.bias": rng.standard_normal(5), "a.lora_bias": rng.standard_normal(5)}
    tensors |= {"norm.weight": rng.standard_normal(6), "b.weight": rng.standard_normal((6, 5))}
    modules = {module: {"method": method, "orientation": "torch"} for module, method in (("norm", "diff"), ("b", "full"))}
    modules["a"] = RECORD | {"shape": [4, 5]}
    state = AdapterState("mine", {}, tensors, modules)
    loratk.merge(base, state, tmp_path / "out.safetensors", weights=[0.25])
    got = numbers(tmp_path / "out.safetensors")
    for name, want in {
        "a.bias": before["a.bias"] + 0.25 * (tensors["a.bias"] + 2 * tensors["a.lora_bias"]),
        "norm.weight": before["norm.weight"] + 0.25 * tensors["norm.weight"],
        "b.weight": before["b.weight"] + 0.25 * (tensors["b.weight"] - before["b.weight"]),
    }.items():
        np.testing.assert_allclose(got[name], want, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("dtype", KINDS)
def test_a_magnitude_belongs_to_the_base_alone(tmp_path, dtype):
    """DoRA: m (W + update) / ||W + update||, the norm of each output, times a weight. Liu et al. 2024, eq. 5."""
    base = base_file(tmp_path / "base.safetensors", dtype)
    plain, magnitude = adapter(modules={"a": (4, 5)}), np.random.default_rng(2).random(5) + 0.5
    state = AdapterState("mine", {}, {**plain.tensors, "a.magnitude": magnitude}, {"a": plain.modules["a"] | {"method": "dora"}})
    loratk.merge(base, state, tmp_path / "out.safetensors", weights=[0.5])
    own = arrays(dtype)["a.weight"].astype(np.float64)
    moved = own + update(plain, "a")
    want = own + 0.5 * (magnitude[:, None] * moved / np.linalg.norm(moved, axis=1, keepdims=True) - own)
    got = numbers(tmp_path / "out.safetensors")["a.weight"].astype(np.float64)
    assert (np.abs(got - rounded(want, dtype)) <= (0 if dtype != "float64" else 1e-14)).all()


@pytest.mark.parametrize("order", ["output-first", "input-first"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_convolutions_tables_and_blocks_of_columns(tmp_path, order, dtype):
    rng, turned = np.random.default_rng(0), order == "output-first"
    shapes = {"conv.weight": (3, 2, 4, 5), "embed_tokens.weight": (7, 3), "qkv.weight": (4, 9)}
    held = {name: rounded(rng.standard_normal(shape), dtype) for name, shape in shapes.items()}
    stored = {**held, "conv.weight": held["conv.weight"].transpose(3, 2, 0, 1), "qkv.weight": held["qkv.weight"].T} if turned else held
    write_safetensors(tmp_path / "base.safetensors", stored, {}, stored if dtype == "bfloat16" else ())
    state = adapter(modules={"conv": (24, 5), "embed_tokens": (7, 3), "qkv.k": (4, 3), "qkv.v": (4, 3)})
    state.modules["embed_tokens"]["layer_type"] = "embedding"
    state.modules["qkv.k"]["columns"], state.modules["qkv.v"]["columns"] = [3, 6], [6, 9]
    loratk.merge(tmp_path / "base.safetensors", state, tmp_path / "out.safetensors", order=order)
    got = numbers(tmp_path / "out.safetensors")
    if turned:
        got |= {"conv.weight": got["conv.weight"].transpose(2, 3, 1, 0), "qkv.weight": got["qkv.weight"].T}
    add = {name: np.zeros(shape) for name, shape in shapes.items()}
    add["conv.weight"] += update(state, "conv").T.reshape(3, 2, 4, 5)
    add["embed_tokens.weight"] += update(state, "embed_tokens").T
    add["qkv.weight"][:, 3:6] += update(state, "qkv.k").T
    add["qkv.weight"][:, 6:] += update(state, "qkv.v").T
    assert_merged(got, held, add, dtype)
    np.testing.assert_array_equal(got["qkv.weight"][:, :3], held["qkv.weight"][:, :3])


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(KINDS), st.sampled_from([None, *KINDS]), st.sampled_from(["safetensors", "h5"]), st.integers(0, 99))
def test_any_dtype_to_any(tmp_path_factory, dtype, to, end, seed):
    folder = tmp_path_factory.mktemp("m")
    base = base_file(folder / "base.safetensors", dtype, seed=seed)
    if to == "bfloat16" and end == "h5":
        with pytest.raises(ConfigError, match="only safetensors has bfloat16"):
            loratk.merge(base, adapter(seed=seed), folder / f"out.{end}", dtype=to)
        return
    loratk.merge(base, adapter(seed=seed), folder / f"out.{end}", dtype=to)
    kind = to or ("float32" if end == "h5" and dtype == "bfloat16" else dtype)
    got, before = numbers(folder / f"out.{end}"), arrays(dtype, seed=seed)
    for name in SHAPES:
        want = before[name].astype(np.float64)
        if name in ("a.weight", "b.weight"):
            want = want + update(adapter(seed=seed), name[0])
        off = np.abs(got[name] - rounded(want, kind).astype(np.float64))
        assert (off <= step(want, kind)).all()
        assert np.count_nonzero(off) <= (2 if kind == dtype else 0)
    np.testing.assert_array_equal(got["steps"], np.arange(3))


@pytest.mark.parametrize("make", [base_file, base_folder])
def test_the_bytes_do_not_depend_on_threads(tmp_path, make, monkeypatch):
    monkeypatch.setattr("loratk.convert.items.PIECE", 64)
    monkeypatch.setattr("loratk.convert.items.STEP", 32)
    base = make(tmp_path / ("base.safetensors" if make is base_file else "base"), "bfloat16")
    seen = []
    for threads in (1, 2, 5):
        with num_threads(threads):
            loratk.merge(base, adapter(), tmp_path / f"out{threads}{base.suffix}", stochastic=True, seed=3)
        seen.append(bits(tmp_path / f"out{threads}{base.suffix}"))
    assert seen[0] == seen[1] == seen[2]


@pytest.mark.parametrize("stochastic", [False, True])
def test_small_pieces_are_the_whole(tmp_path, monkeypatch, stochastic):
    base = base_file(tmp_path / "base.safetensors", "float16")
    rng = np.random.default_rng(0)
    write_safetensors(base, {"a.weight": rng.standard_normal((40, 4)).astype(np.float16)}, {})
    state = adapter(modules={"a": (4, 40)})
    want = loratk.merge(base, state, tmp_path / "want.safetensors", stochastic=stochastic)
    monkeypatch.setattr("loratk.convert.items.PIECE", 40)
    monkeypatch.setattr("loratk.convert.items.STEP", 8)
    got = loratk.merge(base, state, tmp_path / "got.safetensors", stochastic=stochastic)
    assert (tmp_path / "got.safetensors").read_bytes() == (tmp_path / "want.safetensors").read_bytes()
    assert (got.before, got.after, got.rounding.kept) == (want.before, want.after, want.rounding.kept)


def test_large_arrays_by_the_compiled_kernel(tmp_path):
    rng = np.random.default_rng(0)
    base = {"a.weight": round_bfloat16(rng.standard_normal((700, 520)).astype(np.float32))}
    write_safetensors(tmp_path / "base.safetensors", base, {}, base)
    loratk.merge(tmp_path / "base.safetensors", adapter(modules={"a": (520, 700)}), tmp_path / "out.safetensors")
    want = round_bfloat16(base["a.weight"].astype(np.float64) + update(adapter(modules={"a": (520, 700)}), "a"))
    got = numbers(tmp_path / "out.safetensors")["a.weight"]
    assert np.count_nonzero(got != want) < want.size // 2000  # float32 sums decide a few ties otherwise
    assert (np.abs(got - want) <= step(want, "bfloat16")).all()
