import importlib.util
import json
import tracemalloc
from pathlib import Path

import h5py
import numpy as np
import pytest

from loratk.convert import export_adapters, export_merged, merged_arrays
from loratk.convert.ledger import LEDGER
from loratk.errors import ConfigError
from loratk.exchange import AdapterState, read_adapters, write_adapters
from loratk.exchange.transform import round_bfloat16
from loratk.io import Hdf5Store, NpzStore, find_store, open_safetensors, write_safetensors
from loratk.lora import LoraConfig, LoraModel
from loratk.nn import Linear, Sequential
from loratk.plugins import default_registry

STORES = default_registry().stores
RECORD = {"method": "lora", "rank": 1, "alpha": 1.0, "scaling": 1.0}
FACTORS = {"0.lora_A": np.ones((3, 1)), "0.lora_B": np.ones((1, 2))}


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) and a[key].dtype == b[key].dtype for key in a)


def test_adapters_go_to_another_store_and_back_unchanged(run, files, tmp_path):
    assert run("export", files.adapters, tmp_path / "a.npz").exit_code == 0
    assert run("export", tmp_path / "a.npz", tmp_path / "back.h5").exit_code == 0
    assert (tmp_path / "back.h5").read_bytes() == files.adapters.read_bytes()


def test_messages_go_to_stderr(run, files, tmp_path):
    got = run("export", files.adapters, tmp_path / "a.npz")
    assert got.stdout == ""
    lines = got.stderr.splitlines()
    assert f"{files.adapters}: read as loratk adapters, hdf5: its string 'format' is 'loratk-adapter'" in lines[0]
    assert "- adapter 'one': 2 modules with rank 2, alpha 3, scaling 1.5" in lines
    assert f"- {tmp_path / 'a.npz'}: written as loratk adapters, npz" in lines
    assert lines[-1] == f"Wrote one, two to {tmp_path / 'a.npz'}."
    assert len(lines) == len(set(lines))


def test_one_adapter_in_another_dtype(run, files, tmp_path):
    assert run("export", files.adapters, tmp_path / "a.h5", "--adapter", "two", "--dtype", "float16").exit_code == 0
    (state,) = read_adapters(tmp_path / "a.h5", stores=STORES)
    assert state.name == "two"
    assert same(state.tensors, {name: array.astype(np.float16) for name, array in files.model.state("two").items()})
    assert state.metadata == {"task": "test"}


def test_another_dtype_keeps_the_config(run, files, tmp_path):
    assert run("export", files.adapters, tmp_path / "a.h5", "--dtype", "float64").exit_code == 0
    got, want = (read_adapters(path, stores=STORES) for path in (tmp_path / "a.h5", files.adapters))
    assert [state.config for state in got] == [state.config for state in want]


def test_bfloat16_is_rounded_and_marked(run, files, tmp_path):
    assert run("export", files.adapters, tmp_path / "a.h5", "--adapter", "one", "--dtype", "bfloat16").exit_code == 0
    (state,) = read_adapters(tmp_path / "a.h5", stores=STORES)
    for name, array in state.tensors.items():
        assert array.dtype == np.float32
        assert not (array.view(np.uint32) & 0xFFFF).any()
        assert np.abs(array - files.model.state("one")[name]).max() <= np.abs(array).max() * 2**-8
    assert state.modules["0"]["dtypes"] == dict.fromkeys(("lora_A", "lora_B", "bias"), "bfloat16")


def test_portable_folds_the_scaling_and_fills_ranks(run, tmp_path):
    rng = np.random.default_rng(0)
    tensors, modules = {}, {}
    for name, rank, alpha in (("a", 2, 3.0), ("b", 3, 8.0)):
        tensors |= {f"{name}.lora_A": rng.standard_normal((6, rank)), f"{name}.lora_B": rng.standard_normal((rank, 4))}
        modules[name] = {"method": "lora", "layer_type": "linear", "shape": [6, 4], "rank": rank, "alpha": alpha, "scaling": alpha / rank}
    write_adapters(tmp_path / "a.h5", [AdapterState("mine", {}, tensors, modules)], stores=STORES)
    got = run("export", tmp_path / "a.h5", tmp_path / "p.npz", "--portable")
    assert got.exit_code == 0, got.stderr
    assert "portable: rank and alpha 3 in all modules" in got.stderr
    (state,) = read_adapters(tmp_path / "p.npz", stores=STORES)
    assert [(record["rank"], record["alpha"], record["scaling"]) for record in state.modules.values()] == [(3, 3.0, 1.0)] * 2
    assert run("diff", tmp_path / "a.h5", tmp_path / "p.npz").exit_code == 0


def test_select_and_rename(run, files, tmp_path):
    got = run("export", files.adapters, tmp_path / "a.h5", "--adapter", "one", "--rename", "2=blocks.0.out", "--select", "blocks.*")
    assert got.exit_code == 0, got.stderr
    (state,) = read_adapters(tmp_path / "a.h5", stores=STORES)
    assert sorted(state.tensors) == ["blocks.0.out.bias", "blocks.0.out.lora_A", "blocks.0.out.lora_B"]
    assert state.config["targets"] == ["blocks.0.out"]
    again = run("diff", files.adapters, tmp_path / "a.h5", "--adapter-a", "one", "--rename", "2=blocks.0.out")
    assert again.exit_code == 3
    assert "0 is in A only" in again.stdout
    assert "Different: 0 of 1 module in both, and 1 in one only." in again.stdout


def test_to_names_the_store(run, files, tmp_path):
    assert run("export", files.adapters, tmp_path / "adapter.bin", "--to", "npz").exit_code == 0
    assert NpzStore().sniff(tmp_path / "adapter.bin")


@pytest.mark.parametrize("names", [["one"], ["two"], ["one", "two"]])
def test_merged_weights_are_those_of_the_model(run, files, tmp_path, names):
    chosen = [part for name in names for part in ("--adapter", name)]
    got = run("export", files.adapters, tmp_path / "m.npz", "--merged", "--base", files.base, *chosen)
    assert got.exit_code == 0, got.stderr
    contents = NpzStore().read(tmp_path / "m.npz")
    want = files.model.merged_state(names)
    assert contents.arrays.keys() == want.keys()
    for name, array in contents.arrays.items():
        assert array.dtype == want[name].dtype
        np.testing.assert_allclose(array, want[name], rtol=2e-6, atol=2e-6)
    assert not np.allclose(want["2.weight"], files.model.base_state()["2.weight"])
    assert contents.strings.keys() == {"note", LEDGER}
    assert contents.strings["note"] == "kept"


def test_arrays_that_no_adapter_changes_are_copied(run, files, tmp_path):
    assert run("export", files.adapters, tmp_path / "m.h5", "--merged", "--base", files.base, "--adapter", "two").exit_code == 0
    got, base = Hdf5Store().read(tmp_path / "m.h5").arrays, files.model.base_state()
    assert [name for name in base if not np.array_equal(got[name], base[name])] == ["2.weight"]


def test_merged_in_another_dtype_rounds_once(run, files, tmp_path):
    for dtype in ("float16", "float64"):
        run("export", files.adapters, tmp_path / dtype, "--to", "npz", "--merged", "--base", files.base, "--dtype", dtype)
    half, double = (NpzStore().read(tmp_path / dtype).arrays for dtype in ("float16", "float64"))
    assert {array.dtype.name for array in double.values()} == {"float64"}
    assert (double["0.weight"] != double["0.weight"].astype(np.float32)).any()
    assert same(half, {name: array.astype(np.float16) for name, array in double.items()})


def test_another_base_is_refused_unless_asked_for(run, files, tmp_path):
    args = ["export", files.adapters, tmp_path / "m.h5", "--merged", "--base", files.padded]
    got = run(*args)
    assert got.exit_code == 1
    assert got.stderr.count("made for another base") == 2
    assert not (tmp_path / "m.h5").exists()
    assert run(*args, "--any-base").exit_code == 0
    got = Hdf5Store().read(tmp_path / "m.h5").arrays
    assert np.array_equal(got["steps"], np.arange(3))


def test_every_misfit_is_listed(run, files, tmp_path):
    arrays = files.model.base_state()
    Hdf5Store().write(tmp_path / "base.h5", {"0.weight": arrays["0.weight"][:, :3], "2.weight": arrays["2.weight"].astype(np.int8)}, {})
    got = run("export", files.adapters, tmp_path / "m.h5", "--merged", "--base", tmp_path / "base.h5", "--any-base")
    assert got.exit_code == 1
    for want in (
        "no array '0.bias'",
        "no array '2.bias'",
        "adapter 'two', module '2': '2.weight' must be an array of floating-point numbers",
    ):
        assert want in got.stderr
    assert not (tmp_path / "m.h5").exists()


def test_a_wrong_shape_is_named(run, files, tmp_path):
    arrays = files.model.base_state() | {"2.weight": np.zeros((5, 3), np.float32)}
    Hdf5Store().write(tmp_path / "base.h5", arrays, {})
    got = run("export", files.adapters, tmp_path / "m.h5", "--merged", "--base", tmp_path / "base.h5", "--any-base", "--adapter", "two")
    assert got.exit_code == 1
    assert "was made for a weight of shape [5, 4], '2.weight' acts as [5, 3]" in got.stderr


def test_a_value_too_large_for_the_dtype_is_named(run, tmp_path):
    state = AdapterState("big", {}, {"0.lora_A": np.full((2, 1), 1e5), "0.lora_B": np.ones((1, 2))}, {
        "0": {"method": "lora", "rank": 1, "alpha": 1.0, "scaling": 1.0, "shape": [2, 2]}})  # fmt: skip
    write_adapters(tmp_path / "big.h5", [state], stores=STORES)
    got = run("export", tmp_path / "big.h5", tmp_path / "half.h5", "--dtype", "float16")
    assert got.exit_code == 1
    assert "'0.lora_A' holds 1e+05, which is too large for float16" in got.stderr
    assert not (tmp_path / "half.h5").exists()


def test_blocks_of_a_fused_projection_go_to_their_columns(run, tmp_path):
    rng = np.random.default_rng(0)
    weight, a, b = (rng.standard_normal(shape) for shape in ((4, 9), (4, 2), (2, 3)))
    record = {"method": "lora", "rank": 2, "alpha": 4.0, "scaling": 2.0, "shape": [4, 3], "columns": [3, 6]}
    state = AdapterState("mine", {}, {"attn.qkv.k.lora_A": a, "attn.qkv.k.lora_B": b}, {"attn.qkv.k": record})
    write_adapters(tmp_path / "a.h5", [state], stores=STORES)
    Hdf5Store().write(tmp_path / "base.h5", {"attn.qkv.weight": weight}, {})
    got = run("export", tmp_path / "a.h5", tmp_path / "m.h5", "--merged", "--base", tmp_path / "base.h5")
    assert got.exit_code == 0, got.stderr
    want = weight.copy()
    want[:, 3:6] += 2 * a @ b
    np.testing.assert_allclose(Hdf5Store().read(tmp_path / "m.h5").arrays["attn.qkv.weight"], want, rtol=1e-12)


@pytest.mark.parametrize("order", ["C", "F"])
def test_a_weight_with_more_axes_acts_as_a_matrix(order):
    rng = np.random.default_rng(0)
    weight, a, b = (rng.standard_normal(shape) for shape in ((3, 3, 2, 5), (18, 2), (2, 5)))
    record = {"method": "lora", "rank": 2, "alpha": 4.0, "scaling": 2.0, "shape": [18, 5]}
    state = AdapterState("mine", {}, {"conv.lora_A": a, "conv.lora_B": b}, {"conv": record})
    found = []
    got = merged_arrays({"conv.weight": np.asarray(weight, order=order)}, [state], default_registry(), found, None)
    assert found == []
    np.testing.assert_allclose(got["conv.weight"], weight + (2 * a @ b).reshape(weight.shape), rtol=1e-12)


def test_a_base_in_bfloat16_stays_that_in_safetensors_alone(run, tmp_path):
    rng = np.random.default_rng(0)
    weight, a, b = (rng.standard_normal(shape).astype(np.float32) for shape in ((4, 6), (6, 2), (2, 4)))
    base = {"0.weight": round_bfloat16(weight), "other": round_bfloat16(weight[0]), "third": weight[1]}
    write_safetensors(tmp_path / "base.safetensors", base, {"format": "pt"}, ["0.weight", "other"])
    record = {"method": "lora", "rank": 2, "alpha": 2.0, "scaling": 1.0, "shape": [6, 4]}
    write_adapters(tmp_path / "a.h5", [AdapterState("mine", {}, {"0.lora_A": a, "0.lora_B": b}, {"0": record})], stores=STORES)
    want = base["0.weight"].astype(np.float64) + (a.astype(np.float64) @ b).T
    for end, more in (("safetensors", []), ("h5", []), ("f32.safetensors", ["--dtype", "float32"])):
        got = run("export", tmp_path / "a.h5", tmp_path / f"m.{end}", "--merged", "--base", tmp_path / "base.safetensors", *more)
        assert got.exit_code == 0, got.stderr
        assert "the base's weights are taken output first" in got.stderr
        assert ("2 arrays in bfloat16 became float32" in got.stderr) == (end == "h5")
        assert "are as before" not in got.stderr
    small = AdapterState("mine", {}, {"0.lora_A": a / 1000, "0.lora_B": b}, {"0": record})
    write_adapters(tmp_path / "small.h5", [small], stores=STORES)
    got = run("export", tmp_path / "small.h5", tmp_path / "n.safetensors", "--merged", "--base", tmp_path / "base.safetensors")
    assert "% of the numbers in changed arrays are as before" in got.stderr
    with open_safetensors(tmp_path / "m.safetensors") as reader:
        assert [reader.dtype(name) for name in ("0.weight", "other", "third")] == ["BF16", "BF16", "F32"]
        assert np.array_equal(reader.array("0.weight"), round_bfloat16(want))
        assert np.array_equal(reader.array("other"), base["other"])
        assert reader.metadata.keys() == {"format", LEDGER}
    with open_safetensors(tmp_path / "m.f32.safetensors") as reader:
        assert {reader.dtype(name) for name in reader.names()} == {"F32"}
        assert np.array_equal(reader.array("0.weight"), want.astype(np.float32))


def test_a_folder_of_shards_is_a_base(run, tmp_path):
    rng = np.random.default_rng(0)
    one, two, a, b = (rng.standard_normal(shape).astype(np.float32) for shape in ((6, 4), (3, 3), (6, 2), (2, 4)))
    (tmp_path / "base").mkdir()
    for place, (name, weight) in enumerate({"0.weight": one, "1.weight": two}.items()):
        write_safetensors(tmp_path / "base" / f"model-{place}.safetensors", {name: weight}, {"format": "np"})
    index = {"weight_map": {"0.weight": "model-0.safetensors", "1.weight": "model-1.safetensors"}}
    (tmp_path / "base" / "model.safetensors.index.json").write_text(json.dumps(index))
    record = {"method": "lora", "rank": 2, "alpha": 2.0, "scaling": 1.0, "shape": [6, 4]}
    write_adapters(tmp_path / "a.h5", [AdapterState("mine", {}, {"0.lora_A": a, "0.lora_B": b}, {"0": record})], stores=STORES)
    got = run("export", tmp_path / "a.h5", tmp_path / "m.h5", "--merged", "--base", tmp_path / "base")
    assert got.exit_code == 0, got.stderr
    arrays = Hdf5Store().read(tmp_path / "m.h5").arrays
    np.testing.assert_allclose(arrays["0.weight"], one + a @ b, rtol=1e-5)
    assert np.array_equal(arrays["1.weight"], two)


@pytest.mark.parametrize("end", ["h5", "npz", "safetensors"])
def test_merging_holds_one_array_at_a_time(tmp_path, end):
    base = {f"{i}.weight": np.ones((256, 256), np.float32) for i in range(40)}
    write_safetensors(tmp_path / "base.safetensors", base, {"format": "np"})
    tensors = {f"{i}.{key}": np.ones(shape, np.float32) for i in range(40) for key, shape in (("lora_A", (256, 1)), ("lora_B", (1, 256)))}
    state = AdapterState("mine", {}, tensors, {str(i): RECORD for i in range(40)})
    write_adapters(tmp_path / "a.h5", [state], stores=STORES)
    tracemalloc.start()
    export_merged(tmp_path / "a.h5", tmp_path / "base.safetensors", tmp_path / f"m.{end}")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5 << 20  # of 10 MiB
    assert (find_store(tmp_path / f"m.{end}", STORES).read(tmp_path / f"m.{end}").arrays["39.weight"] == 2).all()


def test_faults_of_values_are_all_listed_and_nothing_is_written(run, tmp_path):
    tensors, modules = {}, {}
    for name in ("0", "1"):
        tensors |= {f"{name}.lora_A": np.full((3, 1), 1e30), f"{name}.lora_B": np.full((1, 2), 1e30)}
        modules[name] = {"method": "lora", "rank": 1, "alpha": 1.0, "scaling": 1.0, "shape": [3, 2]}
    write_adapters(tmp_path / "a.h5", [AdapterState("mine", {}, tensors, modules)], stores=STORES)
    for end in ("h5", "npz", "safetensors"):
        Hdf5Store().write(tmp_path / "base.h5", {f"{name}.weight": np.ones((3, 2), np.float32) for name in "01"}, {})
        got = run("export", tmp_path / "a.h5", tmp_path / f"m.{end}", "--merged", "--base", tmp_path / "base.h5")
        assert got.exit_code == 1
        assert [f"'{name}.weight' holds 1e+60, which is too large for float32" in got.stderr for name in "01"] == [True, True]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.h5", "base.h5"]


def test_an_array_that_is_replaced_and_changed_is_refused():
    base = {"0.weight": np.ones((3, 2))}
    replaced = AdapterState("new", {}, {"0.weight": np.zeros((2, 3))}, {"0": {"method": "full", "orientation": "torch"}})
    changed = AdapterState("mine", {}, dict(FACTORS), {"0": RECORD})
    for states in ([replaced, changed], [changed, replaced], [replaced, replaced]):
        found = []
        merged_arrays(base, states, default_registry(), found, None)
        assert found == ["'0.weight' is replaced, and changed besides"]
    got = merged_arrays(base, [replaced], default_registry(), found := [], None)
    assert found == []
    assert np.array_equal(got["0.weight"], np.zeros((3, 2)))


def test_changes_of_whole_modules_come_in_the_order_of_torch():
    base = {"0.weight": np.arange(6.0).reshape(2, 3)}
    state = AdapterState("mine", {}, {"0.weight": np.ones((2, 3))}, {"0": {"method": "diff", "orientation": "torch"}})
    got = merged_arrays(base, [state], default_registry(), found := [], None, "output-first")
    assert found == []
    assert np.array_equal(got["0.weight"], base["0.weight"] + 1)
    merged_arrays({"0.weight": np.ones((3, 3))}, [state], default_registry(), found, None)
    assert found == ["adapter 'mine', module '0': its weight has shape (3, 2), '0.weight' (3, 3)"]


def test_lora_bias_is_scaled_and_bias_is_not():
    base = {"0.weight": np.ones((3, 2)), "0.bias": np.ones(2)}
    tensors = FACTORS | {"0.bias": np.array([1.0, 2.0]), "0.lora_bias": np.array([10.0, 20.0])}
    got = merged_arrays(base, [AdapterState("mine", {}, tensors, {"0": RECORD | {"scaling": 0.5}})], default_registry(), found := [], None)
    assert found == []
    assert np.array_equal(got["0.bias"], [7, 13])
    assert np.array_equal(got["0.weight"], np.full((3, 2), 1.5))


def test_blocks_of_rows_are_added_where_they_belong(monkeypatch):
    monkeypatch.setattr("loratk.convert.deltas.BLOCK", 9)
    rng = np.random.default_rng(0)
    base, a, b = (rng.standard_normal(shape) for shape in ((7, 4), (7, 2), (2, 4)))
    state = AdapterState("mine", {}, {"0.lora_A": a, "0.lora_B": b}, {"0": RECORD | {"rank": 2}})
    got = merged_arrays({"0.weight": base}, [state], default_registry(), found := [], None)
    assert found == []
    np.testing.assert_allclose(got["0.weight"], base + a @ b, rtol=1e-12)


def test_one_file_for_loratk_and_keras(run, tmp_path):
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((6, 2)).astype(np.float32), rng.standard_normal((2, 4)).astype(np.float32)
    record = RECORD | {"rank": 2, "alpha": 4.0, "scaling": 2.0, "layer_type": "linear", "shape": [6, 4]}
    state = AdapterState("mine", {}, {"block.query.lora_A": a, "block.query.lora_B": b}, {"block.query": record})
    write_adapters(tmp_path / "a.h5", [state], stores=STORES)
    got = run("export", tmp_path / "a.h5", tmp_path / "k.lora.h5", "--keras", "-O", "map=7=block.query")
    assert got.exit_code == 0, got.stderr
    assert run("diff", tmp_path / "a.h5", tmp_path / "k.lora.h5").exit_code == 0
    with h5py.File(tmp_path / "k.lora.h5") as file:
        assert file["lora/vars/rank"][()] == 2
        assert np.array_equal(file["lora/7/vars/lora_kernel_a"], a)
        assert np.array_equal(file["lora/7/vars/lora_kernel_b"], 2 * b)


def test_a_base_that_no_format_needs_is_told(run, files, tmp_path):
    got = run("export", files.adapters, tmp_path / "a.npz", "--base", files.base)
    assert got.exit_code == 0
    assert f"the base '{files.base}' was not needed" in got.stderr


def test_a_base_that_is_one_layer(run, tmp_path):
    model = LoraModel.adapt(Linear(3, 2, rng=0).to("reference"), LoraConfig(rank=1))
    model.load_state({name: array + 1 for name, array in model.state().items()})
    Hdf5Store().write(tmp_path / "base.h5", model.base_state(), {})
    model.save(tmp_path / "a.h5")
    assert run("export", tmp_path / "a.h5", tmp_path / "m.h5", "--merged", "--base", tmp_path / "base.h5").exit_code == 0
    np.testing.assert_allclose(Hdf5Store().read(tmp_path / "m.h5").arrays["weight"], model.merged_state()["weight"], rtol=1e-6)


def test_a_merged_file_loads_into_a_plain_module(run, files, tmp_path):
    run("export", files.adapters, tmp_path / "m.h5", "--merged", "--base", files.base, "--adapter", "one")
    plain = Sequential(Linear(6, 5, rng=1), Linear(5, 4, rng=1))
    arrays = Hdf5Store().read(tmp_path / "m.h5").arrays
    plain.load_state_dict({name.replace("2.", "1."): array for name, array in arrays.items()})


def test_an_existing_file_is_kept_unless_forced(run, files, tmp_path):
    target = tmp_path / "a.npz"
    target.write_bytes(b"mine")
    for more in ([], ["--merged", "--base", files.base]):
        got = run("export", files.adapters, target, *more)
        assert got.exit_code == 1
        assert "--force" in got.stderr
        assert target.read_bytes() == b"mine"
    assert run("export", files.adapters, target, "--force").exit_code == 0
    assert NpzStore().sniff(target)


def test_a_file_may_be_replaced_by_itself(run, files, tmp_path):
    target = tmp_path / "a.h5"
    target.write_bytes(files.adapters.read_bytes())
    assert run("export", target, target, "--adapter", "one", "--force").exit_code == 0
    assert [state.name for state in read_adapters(target, stores=STORES)] == ["one"]


def test_a_failed_export_leaves_the_old_file(run, files, tmp_path):
    target = tmp_path / "a.h5"
    target.write_bytes(b"mine")
    assert run("export", files.adapters, target, "--force", "--adapter", "ghost").exit_code == 1
    assert target.read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("args", "want"),
    [
        (["{adapters}", "{out}.xyz"], "no format has its suffix"),
        (["{adapters}", "{out}.h5", "--to", "ghost"], "no format named 'ghost'"),
        (["{adapters}", "{out}.h5", "--adapter", "ghost"], "no adapter named 'ghost'"),
        (["{base}", "{out}.h5"], "no adapter file"),
        (["{adapters}", "{out}.h5", "--merged", "--base", "{adapters}"], "is an adapter file, not the weights"),
        (["{adapters}", "{out}/deep/a.h5"], "there is no folder"),
        (["{adapters}", "{out}.h5", "--from", "npz"], "cannot read"),
        (["{adapters}", "{out}.h5", "--select", "x.*"], "'x.*' matches no module"),
        (["{adapters}", "{out}.h5", "--rename", "x=y"], "'x' is neither a module nor the beginning of one"),
        (["{adapters}", "{out}.h5", "--rename", "0=2"], "'0', '2' would all be named '2'"),
        (["{adapters}", "{out}.h5", "-O", "a=1", "-O", "to:b=1"], "No format here has the option 'a', 'to:b'"),
        (["{adapters}", "{out}.h5", "--merged", "--base", "{base}", "--dtype", "bfloat16"], "Of the stores only safetensors has bfloat16"),
    ],
)
def test_what_cannot_be_done_is_an_error(run, files, tmp_path, args, want):
    names = {"adapters": files.adapters, "base": files.base, "out": tmp_path / "out"}
    got = run("export", *(arg.format(**names) for arg in args))
    assert got.exit_code == 1
    assert want in got.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("more", "want"),
    [
        (["--merged"], "--merged needs --base"),
        (["--any-base"], "--any-base is for --merged"),
        (["--base-order", "input-first"], "--base-order is for --base"),
        (["--bake-rank", "2"], "--bake-rank is for --bake"),
        (
            ["--merged", "--base", "b.h5", "--portable", "--bake", "--bake-rank", "2"],
            "--portable, --bake, --bake-rank would have no effect",
        ),
        (["--keras"], "no file whose name does not end in '.lora.h5'"),
        (["--keras", "--to", "peft"], "--keras writes the format 'keras', --to asks for 'peft'"),
        (["--merged", "--base", "b.h5", "--keras"], "--keras would have no effect with --merged"),
        (["--rename", "a"], "--rename takes two names with '=' between them, found 'a'"),
        (["--rename", "=a"], "--rename takes two names with '=' between them, found '=a'"),
        (["-O", "a=1", "-O", "a=2"], "-O is given twice for 'a'"),
    ],
)
def test_wrong_usage(run, files, tmp_path, more, want):
    got = run("export", files.adapters, tmp_path / "a.h5", *more)
    assert got.exit_code == 2
    assert want in " ".join(got.stderr.split())
    assert not (tmp_path / "a.h5").exists()


@pytest.mark.parametrize("method", sorted(default_registry().methods))
@pytest.mark.parametrize("layer", default_registry().layer_types, ids=lambda layer: layer.__name__)
def test_merging_files_is_merging_the_model(run, tmp_path, layer, method):
    make, _ = layer_examples().LAYERS[layer]
    model = LoraModel(Sequential(make(np.float64)).to("reference"))
    biased = "none" if default_registry().layer_types[layer].bias(model.base.get("0")) is None else "lora_only"
    model.add_adapter("mine", LoraConfig(rank=2, alpha=3, method=method, targets=("0",), bias=biased))
    rng = np.random.default_rng(0)
    state = model.state("mine")
    model.load_state({key: array + rng.random(array.shape) if array.dtype.kind == "f" else array for key, array in state.items()}, "mine")
    Hdf5Store().write(tmp_path / "base.h5", model.base_state(), {})
    model.save(tmp_path / "a.h5")
    got = run("export", tmp_path / "a.h5", tmp_path / "m.npz", "--merged", "--base", tmp_path / "base.h5")
    assert got.exit_code == 0, got.stderr
    merged = NpzStore().read(tmp_path / "m.npz").arrays
    want = model.merged_state("mine")
    assert merged.keys() == want.keys()
    for key, array in want.items():
        np.testing.assert_allclose(merged[key], array, rtol=1e-12, atol=1e-12)
    assert not np.array_equal(want["0.weight"], model.base_state()["0.weight"])


def layer_examples():
    """The examples of layers, which lie with the tests of adapters."""
    path = Path(__file__).parents[1] / "lora" / "layer_examples.py"
    spec = importlib.util.spec_from_file_location("layer_examples", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("record", "tensors", "want"),
    [
        (RECORD, FACTORS | {"0.bias": np.ones(3)}, "its bias has shape (3,), '0.bias' (2,)"),
        (RECORD | {"shape": [2, 3]}, FACTORS, "was made for a weight of shape [2, 3], '0.weight' acts as [3, 2]"),
        (RECORD | {"columns": "0:1"}, FACTORS, "must give columns as [start, stop], found '0:1'"),
        (RECORD | {"method": "ghost"}, FACTORS, "Unknown method 'ghost'"),
        (RECORD | {"scaling": 1e300}, FACTORS, "'0.weight' holds 1e+300, which is too large for float32"),
        (RECORD | {"scaling": 1e308}, {name: 10 * array for name, array in FACTORS.items()}, "'0.weight' is not finite after merging"),
    ],
)
def test_merge_says_what_does_not_fit(record, tensors, want):
    base = {"0.weight": np.ones((3, 2), np.float32), "0.bias": np.ones(2, np.float32)}
    found = []
    merged_arrays(base, [AdapterState("mine", {}, tensors, {"0": record})], default_registry(), found, None)
    assert len(found) == 1
    assert want in found[0]


def test_an_unknown_dtype_is_refused_before_anything_is_read(tmp_path):
    with pytest.raises(ConfigError, match="float16, bfloat16, float32, float64, found 'int8'"):
        export_adapters(tmp_path / "none.h5", tmp_path / "a.h5", dtype="int8")
