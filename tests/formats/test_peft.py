"""PEFT folders: what PEFT wrote is read as PEFT means it, what loratk writes says the same, and what is wrong is told all at once."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from peft_nets import DATA, OUTPUTS, PREFIX, Net, base_file, config, edited, index, tensors

from loratk import AdapterState, LoraConfig, LoraModel, load_adapter, save_adapter
from loratk.convert import export_merged
from loratk.errors import ConfigError, FormatError, LoratkError, StoreError, UnknownNameError
from loratk.exchange import Checkpoint, detect_format
from loratk.exchange.bake import dora_update
from loratk.exchange.factors import dense_update
from loratk.io import NpzStore, write_safetensors
from loratk.io.bfloat16 import to_bits, to_float32
from loratk.lora import files
from loratk.nn import Linear, Module

LAYERS = ("everywhere", "dora", "patterns", "rslora", "biases", "lora_bias", "bfloat16", "plain")
FOLDERS = sorted(entry.name for entry in DATA.iterdir() if entry.is_dir())


def close(got, want):
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5 * np.abs(want).max())


def read(folder, **how):
    return load_adapter(folder, **how).states[0]


def record(folder, module):
    found = dict(read(folder).modules[module])
    found.pop("alpha_source", None)
    return found


# What PEFT wrote


@pytest.mark.parametrize("name", LAYERS)
def test_a_model_computes_what_peft_does(name):
    model = LoraModel.from_file(Net(), DATA / name)
    close(model(index()).numpy(), OUTPUTS[name])
    assert model.active == {"default": 1.0}


def test_several_adapters_one_of_them_named_lora():
    model = LoraModel(Net())
    assert model.load(DATA / "several") == ["default", "lora"]
    for name in ("default", "lora"):
        model.set_active(name)
        close(model(index()).numpy(), OUTPUTS[f"several.{name}"])
    alone = LoraModel(Net())
    assert alone.load(DATA / "several", adapters="lora") == ["lora"]
    with pytest.raises(UnknownNameError, match="'task'"):
        alone.load(DATA / "several", adapters="task")


def test_whole_modules_go_into_merged_weights(tmp_path):
    with pytest.raises(FormatError, match="'head' replaces or changes a whole module"):
        LoraModel(Net()).load(DATA / "saved")
    export_merged(DATA / "saved", base_file(tmp_path), tmp_path / "merged.npz", order="input-first")
    net = Net()
    net.load_state_dict(NpzStore().read(tmp_path / "merged.npz").arrays)
    close(net(index()).numpy(), OUTPUTS["saved"])


@pytest.mark.parametrize("key", [key for key in OUTPUTS if key.partition(".")[0] in ("convolutions", "experts")])
def test_updates_of_layers_that_loratk_does_not_run(key):
    folder, _, path = key.partition(".")
    module = {"experts": "experts.down", "experts.base_layer": "experts.gate_up"}.get(path, path)
    state = read(DATA / folder)
    got = dense_update(state.modules[module], state.parameters()[module])
    want = OUTPUTS[key]
    if want.ndim == 3 and folder == "experts":
        want = want.transpose(0, 2, 1)
    else:
        want = want.reshape(*want.shape[:2], -1).transpose(2, 1, 0).reshape(-1, want.shape[0])
    close(got, want)


def test_records_tell_what_there_is():
    scaled = {"rank": 2, "alpha": 6.0, "scaling": 3.0}
    assert record(DATA / "everywhere", "embedding") == {"method": "lora", "layer_type": "embedding", "shape": [11, 6], **scaled}
    conv = {"layer_type": "conv2d", "shape": [54, 5], "kernel": [3, 3], **scaled}
    assert record(DATA / "everywhere", "conv") == {"method": "lora", **conv}
    assert record(DATA / "dora", "conv") == {"method": "dora", **conv}
    assert record(DATA / "rslora", "conv")["scaling"] == 2 / 3**0.5
    grouped = record(DATA / "convolutions", "grouped")
    assert (grouped["shape"], grouped["kernel"], grouped["peft_groups"], grouped["rank"]) == ([36, 8], [3, 3], 2, 4)  # all 4 channels
    assert record(DATA / "convolutions", "c1")["kernel"] == [3]
    assert record(DATA / "convolutions", "c3")["kernel"] == [2, 2, 2]
    assert record(DATA / "attention", "attn")["shape"] == [8, 24]
    assert record(DATA / "attention", "attn.out_proj")["shape"] == [8, 8]
    experts = record(DATA / "experts", "experts.gate_up")
    assert (experts["experts"], experts["shape"], experts["rank"]) == (3, [6, 10], 2)
    assert record(DATA / "bfloat16", "conv")["dtypes"] == {"lora_A": "bfloat16", "lora_B": "bfloat16"}
    assert record(DATA / "saved", "head") == {"method": "full", "orientation": "torch"}
    tokens = {"method": "trainable_tokens", "orientation": "torch", "tokens": [1, 7]}
    assert record(DATA / "tokens", "embedding.token_adapter") == tokens


def test_where_ranks_and_alphas_come_from():
    modules = read(DATA / "patterns").modules
    got = {name: (entry["rank"], entry["alpha"], entry["alpha_source"]) for name, entry in modules.items()}
    assert got == {
        "block.fc1": (3, 5.0, r"alpha_pattern['block\\.fc.'] of adapter_config.json"),
        "block.fc2": (4, 5.0, r"alpha_pattern['block\\.fc.'] of adapter_config.json"),
        "conv": (4, 6.0, "lora_alpha of adapter_config.json"),
        "head": (2, 6.0, "lora_alpha of adapter_config.json"),
    }


def test_other_methods_are_named_tensors_with_what_is_known_of_them():
    for name, parameters in {
        "adalora": {"adalora_A", "adalora_B", "adalora_E"},
        "vera": {"vera_lambda_b", "vera_lambda_d"},
        "loha": {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"},
        "lokr": {"lokr_w1", "lokr_w2_a", "lokr_w2_b"},
        "ia3": {"ia3_l"},
    }.items():
        state = read(DATA / name)
        assert set(state.parameters()["lin"]) == parameters
        assert state.modules["lin"]["method"] == name
        assert state.modules["lin"]["orientation"] == "torch"
    held, made = read(DATA / "adalora").parameters()["lin"], record(DATA / "adalora", "lin")
    close(held["adalora_B"] @ (held["adalora_A"] * held["adalora_E"]) * made["scaling"], OUTPUTS["adalora.lin"])
    held, made = read(DATA / "loha").parameters()["lin"], record(DATA / "loha", "lin")
    close((held["hada_w1_a"] @ held["hada_w1_b"]) * (held["hada_w2_a"] @ held["hada_w2_b"]) * made["scaling"], OUTPUTS["loha.lin"])
    assert record(DATA / "loha", "c1")["shape"] == [18, 8]
    held, made = read(DATA / "lokr").parameters()["lin"], record(DATA / "lokr", "lin")
    close(np.kron(held["lokr_w1"], held["lokr_w2_a"] @ held["lokr_w2_b"]) * made["scaling"], OUTPUTS["lokr.lin"])
    state = read(DATA / "vera")
    held, shared = state.parameters()["lin"], state.parameters()["root"]
    close(held["vera_lambda_b"][:, None] * shared["vera_B"] @ (held["vera_lambda_d"][:, None] * shared["vera_A"]), OUTPUTS["vera.lin"])


@pytest.mark.parametrize("name", FOLDERS)
def test_detection_and_names(name):
    found = detect_format(DATA / name)
    assert found.format.name == "peft"
    assert "has the peft_type" in found.evidence
    assert found.format.adapters(DATA / name) == (["default", "lora"] if name == "several" else ["default"])


def test_biases_are_changes_where_the_base_is_known(tmp_path):
    with Checkpoint(base_file(tmp_path), {"npz": NpzStore()}) as base:
        state = read(DATA / "biases", base=base)
        want = tensors(DATA / "biases")[0]
        assert state.modules["conv"] == {"method": "bias"}
        for module, name in (("conv", "conv.bias"), ("block.fc1", "block.fc1.base_layer.bias")):
            np.testing.assert_allclose(state.tensors[f"{module}.bias"] + base.bias(module), want[PREFIX + name], rtol=1e-6)
    reading = load_adapter(DATA / "biases")
    assert reading.states[0].modules["block.fc1.base_layer"]["method"] == "full"
    assert any("give the base" in note for note in reading.notes)


def test_the_config_s_other_fields_are_in_the_metadata(tmp_path):
    folder = edited("plain", tmp_path / "x", task_type="CAUSAL_LM", base_model_name_or_path="a/b", lora_dropout=0.25, brand_new={"a": [1]})
    reading = load_adapter(folder)
    state = reading.states[0]
    assert state.metadata["peft.task_type"] == "CAUSAL_LM"
    assert state.metadata["peft.base_model_name_or_path"] == "a/b"
    assert json.loads(state.metadata["peft.brand_new"]) == {"a": [1]}
    assert state.config["dropout"] == 0.25
    assert any("fields that loratk does not know" in note and "'brand_new'" in note for note in reading.notes)
    assert not any("auto_mapping" in key for key in state.metadata)
    save_adapter(tmp_path / "y", state, format="peft")
    fields = ("task_type", "base_model_name_or_path", "lora_dropout", "brand_new")
    assert [config(tmp_path / "y")[field] for field in fields] == ["CAUSAL_LM", "a/b", 0.25, {"a": [1]}]


def test_a_base_that_training_changed_is_told(tmp_path):
    notes = load_adapter(edited("plain", tmp_path / "x", init_lora_weights="pissa_niter_4")).notes
    assert any("'pissa_niter_4'" in note and "changed ones only" in note for note in notes)


# Round trips


@pytest.mark.parametrize("name", FOLDERS)
def test_what_is_read_is_written_the_same(name, tmp_path):
    before = load_adapter(DATA / name).states
    save_adapter(tmp_path / "x", before, format="peft")
    after = load_adapter(tmp_path / "x").states
    assert [state.name for state in after] == [state.name for state in before]
    for one, two in zip(before, after, strict=True):
        strip = lambda state: {m: {k: v for k, v in r.items() if k != "alpha_source"} for m, r in state.modules.items()}  # noqa: E731
        assert strip(one) == strip(two)
        assert one.metadata == two.metadata
        assert one.tensors.keys() == two.tensors.keys()
        for key, want in one.tensors.items():
            assert (two.tensors[key].dtype, two.tensors[key].tobytes()) == (want.dtype, want.tobytes())
    folders = {"several": ["", "lora"]}.get(name, [""])
    for inner in folders if name not in ("biases", "saved") else ():
        want, got = ((root / inner / "adapter_model.safetensors").read_bytes() for root in (DATA / name, tmp_path / "x"))
        assert got == want


def test_the_config_of_the_plain_case(tmp_path):
    save_adapter(tmp_path / "x", read(DATA / "plain"), format="peft")
    got, want = config(tmp_path / "x"), config(DATA / "plain")
    assert sorted(want.pop("target_modules")) == got.pop("target_modules")
    for field, value in got.items():
        assert want[field] == value, field
    text = (tmp_path / "x" / "adapter_config.json").read_text()
    assert text == json.dumps(json.loads(text), indent=2, sort_keys=True)
    assert sorted(os.listdir(tmp_path / "x")) == ["adapter_config.json", "adapter_model.safetensors"]


def state_of(shapes, *, method="lora", rng=None, **more):
    """A state of random linear modules: path -> (d, k, rank, alpha)."""
    rng = rng or np.random.default_rng(0)
    arrays, modules = {}, {}
    for module, (d, k, rank, alpha) in shapes.items():
        arrays |= {f"{module}.lora_A": rng.standard_normal((d, rank)), f"{module}.lora_B": rng.standard_normal((rank, k))}
        modules[module] = {"method": method, "layer_type": "linear", "shape": [d, k], "rank": rank, "alpha": alpha, "scaling": alpha / rank}
    return AdapterState("default", {}, {name: array.astype(np.float32) for name, array in arrays.items()}, modules, **more)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_layer_comes_back_bit_by_bit(data, tmp_path_factory):
    size, folder = st.integers(1, 5), tmp_path_factory.mktemp("x") / "a"
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    dtype = data.draw(st.sampled_from(["float16", "bfloat16", "float32", "float64"]))
    dora, rslora = data.draw(st.booleans()), data.draw(st.booleans())
    arrays, modules = {}, {}
    for number in range(data.draw(st.integers(1, 4))):
        module = f"layers.{number}.{data.draw(st.sampled_from(['fc', 'a.b', 'lora_A', 'lora']))}"
        kind = data.draw(st.sampled_from(["linear", "embedding", "conv1d", "conv2d", "conv3d"]))
        groups = data.draw(st.sampled_from([1, 2])) if kind.startswith("conv") and not dora else 1
        rank, k = groups * data.draw(size), groups * data.draw(size)
        kernel = [data.draw(st.sampled_from([1, 3])) for _ in range(int(kind[4]))] if kind.startswith("conv") else []
        d = data.draw(size) * int(np.prod(kernel))
        alpha = float(data.draw(st.sampled_from([1, 2.5, 16, 0.1])))
        entry = {"method": "dora" if dora else "lora", "layer_type": kind, "shape": [d, k], "rank": rank, "alpha": alpha}
        entry |= {"scaling": alpha / (rank**0.5 if rslora else rank)}
        entry |= ({"kernel": kernel} if kernel else {}) | ({"groups": groups} if groups > 1 else {})
        held = {"lora_A": (d, rank), "lora_B": (rank // groups, k)} | ({"magnitude": (k,)} if dora else {})
        values = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in held.items()}
        if dtype == "bfloat16":
            values, entry["dtypes"] = {name: to_float32(to_bits(array)) for name, array in values.items()}, dict.fromkeys(values, dtype)
        else:
            values = {name: array.astype(dtype) for name, array in values.items()}
        modules[module] = entry
        arrays |= {f"{module}.{name}": array for name, array in values.items()}
    save_adapter(folder, AdapterState("default", {}, arrays, modules), format="peft")
    got = read(folder)
    assert {name: {key: value for key, value in entry.items() if key != "alpha_source"} for name, entry in got.modules.items()} == {
        name: entry | {"scaling": pytest.approx(entry["scaling"], rel=1e-12), "alpha": pytest.approx(got.modules[name]["alpha"])}
        for name, entry in modules.items()
    }
    for name, want in arrays.items():
        assert (got.tensors[name].dtype, got.tensors[name].tobytes()) == (want.dtype, want.tobytes())


def test_metadata_and_fingerprint_are_in_the_header(tmp_path):
    state = state_of({"fc": (3, 4, 2, 2.0)}, fingerprint="f" * 64, metadata={"author": "Ä", "format": "mine"})
    save_adapter(tmp_path / "x", state, format="peft")
    got = read(tmp_path / "x")
    assert (got.fingerprint, got.metadata) == ("f" * 64, {"author": "Ä", "format": "mine"})


# What is written


def written(tmp_path, state, **how):
    notes = save_adapter(tmp_path / "x", state, format="peft", **how)
    return config(tmp_path / "x"), notes


class Names:
    """A base of which names alone matter."""

    path = "base"

    def __init__(self, *names):
        self._names = names

    def modules(self):
        return list(self._names)

    def bias(self, module):
        return None


def test_targets_are_the_shortest_that_mean_just_these_modules(tmp_path):
    shape = (3, 4, 2, 2.0)
    layers = [f"model.layers.{layer}.{name}" for layer in range(3) for name in ("attn.q", "attn.k", "mlp.up")]
    ends = lambda chosen, *base: written(tmp_path, state_of(dict.fromkeys(chosen, shape)), base=Names(*base))[0]["target_modules"]  # noqa: E731
    assert ends(layers[::3], *layers) == ["q"]
    assert ends(layers[:3], *layers) == ["0.attn.k", "0.attn.q", "0.mlp.up"]
    assert ends(["a.fc"], "a.fc", "b.fc") == ["a.fc"]
    assert ends(["a.net.0", "a.net.2"], "a.net.0", "a.net.2", "a.layers.0.fc") == ["net.0", "net.2"]
    assert ends(["a.b"], "a.b", "c.b.d") == ["a.b"]
    found = ends(["fc", "x.y"], "fc", "block.fc", "x.y")
    assert re.fullmatch(found, "fc")
    assert re.fullmatch(found, "x.y")
    assert not re.fullmatch(found, "block.fc")


def test_targets_without_a_base(tmp_path):
    shape = (3, 4, 2, 2.0)
    layers = [f"model.layers.{layer}.{name}" for layer in range(3) for name in ("q", "v")]
    found, notes = written(tmp_path, state_of(dict.fromkeys(layers, shape)))
    assert found["target_modules"] == ["q", "v"]
    assert any("no base was given" in note for note in notes)
    assert written(tmp_path, state_of(dict.fromkeys(layers[2:], shape)))[0]["target_modules"] == layers[2:]
    assert written(tmp_path, state_of(dict.fromkeys(layers[:5], shape)))[0]["target_modules"] == layers[:5]


def test_patterns_say_what_differs_and_mean_nothing_else(tmp_path):
    shapes = {f"layers.{i}.{name}": (8, 8, 4 if name == "up" else 2, 2.0 * (1 + (i == 1))) for i in range(3) for name in ("q", "up")}
    shapes |= {"q": (8, 8, 1, 2.0)}
    found, _ = written(tmp_path, state_of(shapes))
    assert (found["r"], found["lora_alpha"]) == (2, 2)
    assert found["rank_pattern"] == {"^q": 1, "up": 4}
    assert found["alpha_pattern"] == {r"1\.q": 4, r"1\.up": 4}
    got = read(tmp_path / "x").modules
    assert {name: (entry["rank"], entry["alpha"]) for name, entry in got.items()} == {name: (r, a) for name, (_, _, r, a) in shapes.items()}


def test_a_scaling_that_no_rule_gives(tmp_path):
    state = state_of({"a": (3, 4, 2, 2.0), "b": (3, 4, 2, 2.0)})
    state.modules["a"]["scaling"] = 0.3
    found, _ = written(tmp_path, state)
    assert sorted([found["lora_alpha"], *found["alpha_pattern"].values()]) == [0.6, 2]
    assert read(tmp_path / "x").modules["a"]["scaling"] == pytest.approx(0.3)


def test_options_are_fields(tmp_path):
    options = {
        "base_model_name_or_path": "a/b",
        "task_type": "CAUSAL_LM",
        "revision": "main",
        "fan_in_fan_out": "true",
        "lora_dropout": "0.1",
    }
    found, _ = written(tmp_path, state_of({"fc": (3, 4, 2, 2.0)}), options=options)
    assert {key: found[key] for key in options} == options | {"fan_in_fan_out": True, "lora_dropout": 0.1}
    for wrong in ({"lora_dropout": 2}, {"fan_in_fan_out": "perhaps"}, {"inference_mode": 3}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            written(tmp_path, state_of({"fc": (3, 4, 2, 2.0)}), options=wrong)


def test_names_of_adapters_are_folders(tmp_path):
    states = [state_of({"fc": (3, 4, 2, 2.0)}), state_of({"fc": (3, 4, 1, 2.0)})]
    from dataclasses import replace

    save_adapter(tmp_path / "x", [states[0], replace(states[1], name="b-2")], format="peft")
    assert [state.name for state in load_adapter(tmp_path / "x").states] == ["default", "b-2"]
    save_adapter(tmp_path / "y", replace(states[0], name="b-2"), format="peft")
    assert os.listdir(tmp_path / "y") == ["b-2"]
    notes = save_adapter(tmp_path / "z", replace(states[0], name="b-2"), format="peft", options={"flat": True})
    assert [state.name for state in load_adapter(tmp_path / "z").states] == ["default"]
    assert any("'b-2' is not kept" in note for note in notes)
    for name in ("../up", "a/b", ".hidden", "x" * 300, "a\nb", "con:"):
        with pytest.raises(ConfigError, match="cannot be the name of a folder"):
            save_adapter(tmp_path / "w", replace(states[0], name=name), format="peft")
    assert not (tmp_path / "w").exists()


def test_blocks_of_a_fused_projection_become_one_adapter(tmp_path):
    rng = np.random.default_rng(3)
    state = state_of({"attn.qkv.q": (5, 4, 2, 4.0), "attn.qkv.v": (5, 3, 1, 2.0)}, rng=rng)
    for module, columns in (("attn.qkv.q", [0, 4]), ("attn.qkv.v", [8, 11])):
        state.modules[module]["columns"] = columns
    with pytest.raises(ConfigError, match="give the base"):
        written(tmp_path, state)
    NpzStore().write(tmp_path / "base.npz", {"attn.qkv.weight": np.zeros((5, 11), np.float32)}, {})
    _, notes = written(tmp_path, state, base=tmp_path / "base.npz")
    got = read(tmp_path / "x")
    whole = np.zeros((5, 11))
    for module, (start, stop) in (("attn.qkv.q", (0, 4)), ("attn.qkv.v", (8, 11))):
        whole[:, start:stop] = dense_update(state.modules[module], state.parameters()[module])
    close(dense_update(got.modules["attn.qkv"], got.parameters()["attn.qkv"]), whole)
    assert any("became one of rank 3, exactly" in note for note in notes)


def test_blocks_of_other_scalings_and_of_dora(tmp_path):
    NpzStore().write(tmp_path / "base.npz", {"qkv.weight": np.zeros((5, 7), np.float32)}, {})
    state = state_of({"qkv.q": (5, 4, 2, 4.0), "qkv.v": (5, 3, 1, 5.0)})
    for module, columns in (("qkv.q", [0, 4]), ("qkv.v", [4, 7])):
        state.modules[module]["columns"] = columns
    want = np.hstack([dense_update(state.modules[module], state.parameters()[module]) for module in state.modules])
    for method in ("lora", "dora"):
        for module, entry in state.modules.items():
            entry["method"] = method
            if method == "dora":
                state.tensors[f"{module}.magnitude"] = np.arange(1.0, 1 + entry["shape"][1], dtype=np.float32)
        written(tmp_path, state, base=tmp_path / "base.npz")
        got = read(tmp_path / "x")
        close(dense_update(got.modules["qkv"], got.parameters()["qkv"]), want)
    np.testing.assert_array_equal(got.tensors["qkv.magnitude"], [1, 2, 3, 4, 1, 2, 3])
    state.modules["qkv.v"]["columns"] = [3, 6]
    with pytest.raises(ConfigError, match="they overlap"):
        written(tmp_path, state, base=tmp_path / "base.npz")
    for key in ("lora_A", "lora_B", "magnitude"):
        del state.tensors[f"qkv.v.{key}"]
    del state.modules["qkv.v"]
    with pytest.raises(ConfigError, match="DoRA on a part of its columns"):
        written(tmp_path, state, base=tmp_path / "base.npz")


def test_a_grouped_convolution_has_the_channels_of_all_groups(tmp_path):
    state = state_of({"conv": (4, 6, 2, 2.0)})
    state.modules["conv"] |= {"layer_type": "conv1d", "kernel": [2], "groups": 2}
    state.tensors["conv.lora_B"] = state.tensors["conv.lora_B"][:1]
    written(tmp_path, state)
    a = tensors(tmp_path / "x")[0][PREFIX + "conv.lora_A.weight"]
    own = state.tensors["conv.lora_A"].reshape(2, 2, 2)  # window, channels of a group, rank
    assert a.shape == (2, 4, 2)
    np.testing.assert_array_equal(a[0], np.vstack([own[:, :, 0].T, np.zeros((2, 2))]))
    np.testing.assert_array_equal(a[1], np.vstack([np.zeros((2, 2)), own[:, :, 1].T]))
    state = read(DATA / "convolutions")
    state.tensors["grouped.lora_B"][0, 7] = 1
    with pytest.raises(ConfigError, match="not made of 2 blocks"):
        written(tmp_path, state)


def test_embeddings_that_peft_saved_beside_the_adapter(tmp_path):
    table = np.arange(12, dtype=np.float32).reshape(4, 3)
    head = table[::-1] + 1
    add = {PREFIX + "model.embed_tokens.weight": table, PREFIX + "lm_head.weight": head}
    folder = edited("plain", tmp_path / "x", add=add)
    state = read(folder)
    assert state.modules["lm_head"] == {"method": "full", "orientation": "torch"}
    NpzStore().write(tmp_path / "base.npz", {"model.embed_tokens.weight": table, "lm_head.weight": table.T}, {})
    reading = load_adapter(folder, base=tmp_path / "base.npz")
    assert set(reading.states[0].modules) == {"block.fc1", "block.fc2", "lm_head"}
    assert any("the base has the same numbers" in note for note in reading.notes)


def test_a_bias_of_another_shape_than_the_base_s(tmp_path):
    folder = edited("biases", tmp_path / "x", add={PREFIX + "conv.bias": np.zeros(6, np.float32)})
    assert "must have the shape of the base's bias, (5,), found (6,)" in faults_of(folder, base=base_file(tmp_path))


def test_what_peft_cannot_hold_is_refused_by_name(tmp_path):
    state = state_of({"a": (3, 4, 2, 2.0), "b": (3, 4, 2, 2.0), "c": (3, 4, 2, 2.0)})
    state.modules["b"]["method"] = "dora"
    state.tensors["b.magnitude"] = np.ones(4, np.float32)
    state.tensors["b.lora_bias"] = np.ones(4, np.float32)
    state.modules["d"] = {"method": "bias"}
    state.tensors["d.bias"] = np.ones(4, np.float32)
    with pytest.raises(ConfigError) as error:
        written(tmp_path, state)
    for fault in (
        "one method for all modules, found 'dora', 'lora'",
        "module 'b': PEFT has no lora_bias for DoRA",
        "'d': PEFT keeps biases whole",
    ):
        assert fault in str(error.value)
    conv = state_of({"a": (9, 4, 2, 2.0)})
    conv.modules["a"]["layer_type"] = "conv2d"
    with pytest.raises(ConfigError, match="must have its window"):
        written(tmp_path, conv)
    einsum = state_of({"a": (6, 4, 2, 2.0)})
    einsum.modules["a"] |= {"layer_type": "einsum", "kernel": [2, 3, 4]}
    with pytest.raises(ConfigError, match="EinsumDense"):
        written(tmp_path, einsum)
    assert os.listdir(tmp_path) == []


# Names


@pytest.mark.parametrize(
    ("rename", "note"),
    [
        (lambda name: name.replace("block", "_orig_mod.block"), "'_orig_mod' was stripped from 4 of 4"),
        (lambda name: name.replace("block", "block._fsdp_wrapped_module"), "'_fsdp_wrapped_module' was stripped from 4 of 4"),
        (lambda name: "module." + name, "'module' was stripped from 4 of 4"),
        (lambda name: name.replace(".weight", ".default.weight"), "the adapter's name 'default' was stripped from 4 of 4"),
        (lambda name: name.replace(".weight", ".lora.weight"), "the adapter's name 'lora' was stripped from 4 of 4"),
        (lambda name: name.removeprefix(PREFIX), "lack PEFT's prefix"),
    ],
)
def test_what_training_programs_leave_in_names(rename, note, tmp_path):
    folder = edited("plain", tmp_path / "x", rename=rename)
    reading = load_adapter(folder)
    assert set(reading.states[0].modules) == {"block.fc1", "block.fc2"}
    assert any(note in line for line in reading.notes)


def test_modules_whose_names_are_like_peft_s_own(tmp_path):
    shape = (3, 4, 2, 2.0)
    names = ["lora", "lora_A", "base_layer_2.lora_B", "module.fc", "model.base_model.fc", "default", "weight"]
    save_adapter(tmp_path / "x", state_of(dict.fromkeys(names, shape)), format="peft")
    assert set(read(tmp_path / "x").modules) == set(names)


def test_both_spellings_of_dora(tmp_path):
    folder = edited("dora", tmp_path / "x", rename=lambda name: name + ".weight" * name.endswith("lora_magnitude_vector"))
    want, got = read(DATA / "dora"), read(folder)
    assert want.tensors.keys() == got.tensors.keys()
    flat = {name: array.reshape(-1) for name, array in tensors(DATA / "dora")[0].items() if "magnitude" in name}
    got = read(edited("dora", tmp_path / "y", add=flat))
    np.testing.assert_array_equal(got.tensors["conv.magnitude"], want.tensors["conv.magnitude"])


# What is wrong


def faults_of(folder, **how):
    with pytest.raises(FormatError) as error:
        load_adapter(folder, **how)
    return str(error.value)


def test_every_fault_at_once(tmp_path):
    arrays = tensors(DATA / "everywhere")[0]
    add = {
        PREFIX + "block.fc1.lora_A.weight": np.zeros((4, 5), np.float32),
        PREFIX + "head.lora_magnitude_vector": np.zeros(3, np.float32),
        PREFIX + "surprise.weight": np.zeros(3, np.float32),
        PREFIX + "conv.lora_B.weight": np.zeros((5, 3, 1, 1), np.float32),
        PREFIX + "stray.lora_A.weight": np.zeros((2, 3), np.float32),
    }
    folder = edited("everywhere", tmp_path / "x", drop=[PREFIX + "block.fc2.lora_B.weight"], add=add, modules_to_save=["final"])
    text = faults_of(folder)
    for fault in (
        "'base_model.model.block.fc2.lora_B.weight' is missing",
        "module 'block.fc1': the factors disagree about the rank: (4, 5) has 4, (7, 2) has 2",
        "unexpected tensor 'base_model.model.head.lora_magnitude_vector' (3,): adapter_config.json says that use_dora is false",
        "unexpected tensor 'base_model.model.surprise.weight' (3,)",
        "module 'conv': the factors disagree about the rank",
        "'base_model.model.stray.lora_B.weight' is missing",
        "target_modules does not mean 'stray'",
        "modules_to_save names 'final', for which there are no tensors",
    ):
        assert fault in text, fault
    assert len(arrays) == 10


@pytest.mark.parametrize(
    ("source", "fields", "fault"),
    [
        ("plain", {"r": 3}, "module 'block.fc1': its tensors have rank 2, adapter_config.json promises 3"),
        ("plain", {"rank_pattern": {"fc1": 4}}, "module 'block.fc1': its tensors have rank 2, adapter_config.json promises 4"),
        ("plain", {"target_modules": ["fc1", "fc2", "q_proj"]}, "target_modules names 'q_proj', for which there are no tensors"),
        ("plain", {"target_modules": ["fc1"]}, "target_modules does not mean 'block.fc2'"),
        ("plain", {"target_modules": r".*fc1"}, "target_modules does not mean 'block.fc2'"),
        ("plain", {"exclude_modules": ["fc2"]}, "target_modules does not mean 'block.fc2'"),
        ("plain", {"use_dora": True}, "'base_model.model.block.fc1.lora_magnitude_vector' is missing"),
        ("plain", {"lora_bias": True}, "'base_model.model.block.fc2.lora_B.bias' is missing"),
        ("lora_bias", {"lora_bias": False}, "unexpected tensor 'base_model.model.conv.lora_B.bias'"),
        ("biases", {"bias": "none"}, "unexpected tensor 'base_model.model.block.fc1.base_layer.bias'"),
        ("biases", {"bias": "lora_only"}, "unexpected tensor 'base_model.model.conv.bias'"),
        ("saved", {"modules_to_save": None}, "unexpected tensor 'base_model.model.head.weight'"),
        ("tokens", {"trainable_token_indices": None}, "unexpected tensor 'base_model.model.embedding.token_adapter"),
        ("tokens", {"trainable_token_indices": {"embedding": [1]}}, "must have a row for each of 1 tokens"),
        ("tokens", {"trainable_token_indices": {"embedding": [1, 7], "wte": [1]}}, "trainable_token_indices names 'wte'"),
        ("experts", {"target_parameters": ["experts.gate_up"]}, "module 'experts' has factors for 2 parameters"),
        ("experts", {"target_parameters": ["experts.gate_up", "experts.down", "other.w"]}, "target_parameters names 'other.w'"),
        ("experts", {"r": 4}, "have 6 rows for all experts together, and adapter_config.json promises rank 4 for each"),
        ("plain", {"peft_type": "OFT"}, "peft_type is 'OFT'; loratk reads LORA, ADALORA"),
        ("plain", {"peft_type": "ADALORA"}, "unexpected tensor"),
        ("plain", {"lora_alpha": "8"}, "lora_alpha must be a finite number, found '8'"),
        ("plain", {"lora_alpha": 10**400}, "lora_alpha must be a finite number"),
        ("plain", {"r": 0}, "r must be a whole number from 1 up, found 0"),
        ("plain", {"r": True}, "r must be a whole number"),
        ("plain", {"alpha_pattern": {"fc1": None}}, "alpha_pattern must be finite numbers by pattern"),
        ("plain", {"alpha_pattern": {"(": 1}}, "alpha_pattern has the pattern '(', which cannot be followed: it is no regular expression"),
        ("plain", {"rank_pattern": {r"(.)\1fc": 2}}, "loratk does not follow its groupref"),
        ("plain", {"target_modules": "("}, "a pattern of adapter_config.json cannot be followed"),
        (
            "plain",
            {"target_modules": "(?=.*" * 40 + "x" + ")" * 40},
            "a pattern of adapter_config.json cannot be followed: it takes too many",
        ),
        ("plain", {"target_modules": 3}, "target_modules must be a text or a list of texts, found 3"),
        ("plain", {"use_qalora": True}, "use_qalora is set, which pools the input of the factors"),
        ("plain", {"arrow_config": {"top_k": 1}}, "arrow_config is set"),
        ("loha", {"peft_type": "LOKR"}, "unexpected tensor"),
        ("adalora", {"peft_type": "LORA"}, "unexpected tensor"),
    ],
)
def test_configs_and_tensors_that_contradict_each_other(source, fields, fault, tmp_path):
    assert fault in faults_of(edited(source, tmp_path / "x", **fields))


def test_layers_that_are_chosen_by_number(tmp_path):
    shape = (3, 4, 2, 2.0)
    save_adapter(tmp_path / "x", state_of({f"model.layers.{layer}.fc": shape for layer in (1, 2)}), format="peft")
    path = tmp_path / "x" / "adapter_config.json"
    for fields, fault in (
        ({"layers_to_transform": [1, 2]}, None),
        ({"layers_to_transform": [1, 2], "layers_pattern": "layers"}, None),
        ({"layers_to_transform": 1}, "target_modules does not mean 'model.layers.2.fc'"),
        (
            {"layers_to_transform": [1, 2], "layers_pattern": ["blocks"]},
            "target_modules does not mean 'model.layers.1.fc', 'model.layers.2.fc'",
        ),
    ):
        path.write_text(json.dumps(config(tmp_path / "x") | {"target_modules": ["fc"], "layers_pattern": None} | fields))
        if fault is None:
            assert len(read(tmp_path / "x").modules) == 2
        else:
            assert fault in faults_of(tmp_path / "x")


def test_hostile_patterns_take_no_time(tmp_path):
    name = "a" * 300
    state = state_of({f"{name}.{name}": (3, 4, 2, 2.0)})
    save_adapter(tmp_path / "x", state, format="peft")
    path = tmp_path / "x" / "adapter_config.json"
    for pattern in ("(a+)+b", "(.*)*x", "(a|a)*b", "(?:a?){300}b", ".*" * 2000 + "b", "(((a{1,9}){1,9}){1,9}){1,9}b"):
        path.write_text(json.dumps(config(tmp_path / "x") | {"alpha_pattern": {pattern: 5}}))
        assert read(tmp_path / "x").modules[f"{name}.{name}"]["alpha"] == 2


def test_what_may_be_missing_by_its_name(tmp_path):
    missing = PREFIX + "block.fc2.lora_B.weight"
    folder = edited("plain", tmp_path / "x", drop=[missing], target_modules=["fc1", "fc2", "q_proj"], modules_to_save=["final"])
    text = faults_of(folder)
    assert text.count("\n") == 3
    reading = load_adapter(folder, allow_missing=[missing, "q_proj", "final"])
    assert set(reading.states[0].modules) == {"block.fc1"}
    assert any("module 'block.fc2' was left out" in note for note in reading.notes)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"", "is no JSON in UTF-8"),
        (b"\xff", "no format recognises"),
        (b"[]", "no format recognises"),
        (b'{"peft_type": "LORA", "r": NaN}', "NaN is not JSON"),
        (b'{"peft_type": "LORA", "r": 1e999}', "too large for a number"),
        (b'{"peft_type": "LORA", "r": 1, "r": 2}', "a key is given twice"),
        (b'{"peft_type": "LORA", "x": ' + b"[" * 100_000, "nested too deeply"),
        (b'{"peft_type": "LORA", "r": ' + b"9" * 5000 + b"}", "is no JSON in UTF-8"),
        (b'{"peft_type": ["LORA"]}', "peft_type must be a text"),
        (b'{"peft_type": "LORA", "a\\nb": 1}', "control characters"),
    ],
)
def test_hostile_configs(content, fault, tmp_path):
    shutil.copytree(DATA / "plain", tmp_path / "x")
    (tmp_path / "x" / "adapter_config.json").write_bytes(content)
    with pytest.raises(FormatError, match=re.escape(fault)):
        load_adapter(tmp_path / "x", format="peft" if not content else None)


@pytest.mark.parametrize(
    ("name", "array", "fault"),
    [
        ("block.fc1.lora_A.weight", np.zeros((0, 5), np.float32), "is empty, (0, 5): a sharded tensor"),
        ("block.fc1.lora_A.weight", np.zeros(5, np.float32), "must both have 2 axes"),
        ("block.fc1.lora_A.weight", np.zeros((2, 5), np.int32), "must hold floating-point numbers, found I32"),
        ("block.fc1.lora_A.weight", np.full((2, 5), np.nan, np.float32), "NaN or infinite"),
        ("block..fc1.lora_A.weight", np.zeros((2, 5), np.float32), "has a name with an empty part"),
        ("block.fc\n1.lora_A.weight", np.zeros((2, 5), np.float32), "has a name with control characters"),
        ("block.fc1.lora_A.default.weight", np.zeros((2, 5), np.float32), "mean the same tensor"),
        ("block.fc1.lora_A.a.b.weight", np.zeros((2, 5), np.float32), "unexpected tensor"),
        ("x" * 5000, np.zeros(1, np.float32), "has a name of 5017 characters"),
    ],
)
def test_hostile_tensors(name, array, fault, tmp_path):
    assert fault in faults_of(edited("plain", tmp_path / "x", add={PREFIX + name: array}))


def test_folders_that_are_not_whole(tmp_path):
    shutil.copytree(DATA / "plain", tmp_path / "x")
    os.remove(tmp_path / "x" / "adapter_model.safetensors")
    assert "has a adapter_config.json, but no adapter_model.safetensors" in faults_of(tmp_path / "x")
    (tmp_path / "x" / "adapter_model.bin").write_bytes(b"\x80\x02}q\x00.")
    text = faults_of(tmp_path / "x")
    assert "a Python pickle" in text
    assert "--from loralib" in text
    os.remove(tmp_path / "x" / "adapter_config.json")
    with pytest.raises(FormatError, match="no format recognises the folder"):
        load_adapter(tmp_path / "x")
    (tmp_path / "x" / "adapter_config.json").mkdir()
    with pytest.raises(LoratkError):
        load_adapter(tmp_path / "x")


def test_faults_of_several_adapters_are_listed_together(tmp_path):
    folder = edited("several", tmp_path / "x", r=7)
    os.remove(folder / "lora" / "adapter_model.safetensors")
    text = faults_of(folder)
    assert "adapter 'default': module 'block.fc1': its tensors have rank 2, adapter_config.json promises 7" in text
    assert "x/lora' has a adapter_config.json, but no" in text
    shutil.copy(DATA / "several" / "lora" / "adapter_model.safetensors", folder / "lora")
    assert read(folder, adapters="lora").name == "lora"


def test_tensors_without_their_config(tmp_path):
    file = shutil.copy(DATA / "rslora" / "adapter_model.safetensors", tmp_path)
    assert detect_format(file).format.name == "peft"
    with pytest.raises(ConfigError, match="give it as the option alpha"):
        load_adapter(file)
    state = read(file, options={"alpha": "2", "rslora": "true"})
    want = read(DATA / "rslora")
    assert {name: entry["scaling"] for name, entry in state.modules.items()} == {n: entry["scaling"] for n, entry in want.modules.items()}
    assert state.modules["conv"]["alpha_source"] == "lora_alpha of the option alpha"
    with pytest.raises(ConfigError, match=r"give the folder .*: its adapter_config.json holds it"):
        load_adapter(DATA / "rslora" / "adapter_model.safetensors")
    for wrong in ("nan", "many", "inf"):
        with pytest.raises(ConfigError, match="alpha must be a"):
            load_adapter(file, options={"alpha": wrong})
    assert (
        read(shutil.copy(DATA / "dora" / "adapter_model.safetensors", tmp_path), options={"alpha": 6}).modules["conv"]["method"] == "dora"
    )


def test_random_bytes_in_any_file_give_loratk_errors_alone(tmp_path):
    rng = np.random.default_rng(5)
    for source in ("experts", "dora", "adalora", "tokens", "biases"):
        for file in ("adapter_config.json", "adapter_model.safetensors"):
            whole = (DATA / source / file).read_bytes()
            for _ in range(60):
                folder = tmp_path / "x"
                shutil.copytree(DATA / source, folder, dirs_exist_ok=True)
                broken = bytearray(whole)
                for place in rng.integers(0, min(len(whole), 1500), rng.integers(1, 4)):
                    broken[place] = rng.integers(0, 256)
                (folder / file).write_bytes(broken[: len(broken) if rng.random() < 0.8 else rng.integers(0, len(broken))])
                with contextlib.suppress(LoratkError):
                    load_adapter(folder, format="peft")


# Atomic


def pair(folder, alpha, value):
    """Write an adapter whose alpha tells which numbers belong to it."""
    state = state_of({"fc": (3, 4, 2, float(alpha))})
    state.tensors["fc.lora_A"][:] = value
    save_adapter(folder, state, format="peft")


def whole(folder):
    state = read(folder)
    return state.modules["fc"]["alpha"], float(state.tensors["fc.lora_A"][0, 0])


KILLED = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_peft import pair, whole

there, home = sys.argv[3] == "True", Path(sys.argv[1])
calls = ("replace", "rename", "unlink", "mkdir", "fsync", "rmdir", "chmod")
for fate in range(1000):
    folder = home / str(fate)
    if there:
        pair(folder, 1, 1.0)
    if not os.fork():
        count = 0
        def dying(real):
            def call(*arguments, **how):
                global count
                count += 1
                if count > fate:
                    os._exit(9)
                return real(*arguments, **how)
            return call
        for name in calls:
            setattr(os, name, dying(getattr(os, name)))
        pair(folder, 2, 2.0)
        os._exit(0)
    ended = os.waitstatus_to_exitcode(os.wait()[1]) == 0
    assert folder.exists() or not there
    if folder.exists():
        assert whole(folder) in ([(1.0, 1.0)] if there and not ended else []) + [(2.0, 2.0)], (fate, whole(folder))
    pair(folder, 3, 3.0)
    assert whole(folder) == (3.0, 3.0)
    assert sorted(os.listdir(folder)) == ["adapter_config.json", "adapter_model.safetensors"], (fate, os.listdir(folder))
    if ended:
        break
assert [entry for entry in os.listdir(home) if entry.startswith(".")] == [], os.listdir(home)
print(fate)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork to kill a copy of the process")
@pytest.mark.parametrize("there", [False, True])
def test_a_write_killed_at_any_call_leaves_the_old_or_the_new(there, tmp_path):
    command = [sys.executable, "-c", KILLED, str(tmp_path), str(Path(__file__).parent), str(there)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 10


def test_a_reader_meanwhile_sees_one_write_or_the_other(tmp_path):
    import threading

    folder, stop, seen = tmp_path / "x", threading.Event(), set()
    pair(folder, 1, 1.0)

    def write():
        for number in range(2, 60):
            pair(folder, number, number)
        stop.set()

    thread = threading.Thread(target=write)
    thread.start()
    while not stop.is_set():
        alpha, value = whole(folder)
        assert alpha == value
        seen.add(alpha)
    thread.join()
    assert len(seen) > 3


def test_other_files_of_the_folder_stay(tmp_path):
    folder = tmp_path / "x"
    folder.mkdir()
    (folder / "tokenizer.json").write_text("mine")
    (folder / "notes").mkdir()
    pair(folder, 1, 1.0)
    os.chmod(folder / "adapter_config.json", 0o640)
    save_adapter(folder / "b", state_of({"fc": (3, 4, 2, 2.0)}), format="peft")
    notes = save_adapter(folder, state_of({"fc": (3, 4, 2, 3.0)}), format="peft")
    assert any("also holds 'b'" in note for note in notes)
    assert sorted(os.listdir(folder)) == ["adapter_config.json", "adapter_model.safetensors", "b", "notes", "tokenizer.json"]
    with pytest.raises(StoreError, match="it is a file"):
        pair(folder / "tokenizer.json", 1, 1)
    with pytest.raises(StoreError, match="there is no folder"):
        pair(tmp_path / "no" / "x", 1, 1)


# Models


class Chain(Module):
    def __init__(self):
        rng = np.random.default_rng(0)
        self.first, self.second = Linear(3, 4, rng=rng), Linear(4, 2, rng=rng)

    def forward(self, x):
        return self.second(self.first(x))


def random_model(module, lora, **how):
    rng = np.random.default_rng(1)
    model = LoraModel.adapt(module, lora, **how)
    for name in model.adapters:
        model.load_state({key: rng.standard_normal(array.shape).astype(np.float32) for key, array in model.state(name).items()}, name)
    return model


CONFIGS = {
    "lora": LoraConfig(rank=2, alpha=3, targets=("*",), seed=1),
    "dora": LoraConfig(rank=2, alpha=3, targets=("embedding", "conv", "fc1", "fc2", "head"), method="dora"),
    "patterns": LoraConfig(rank=2, alpha=3, rank_pattern={"fc1": 3}, alpha_pattern={"head": 1}, rslora=True),
    "lora_only": LoraConfig(rank=2, alpha=3, targets=("conv", "fc1", "fc2"), bias="lora_only"),
    "all": LoraConfig(rank=2, alpha=3, targets=("fc1",), bias="all"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_models_go_to_peft_and_come_back(name, tmp_path):
    model = random_model(Net(), CONFIGS[name].replace(targets=("embedding", "conv", "all-linear")) if name == "lora" else CONFIGS[name])
    notes = files.save(model, tmp_path / "x", format="peft")
    assert not any("no base was given" in note for note in notes)
    again = LoraModel.from_file(Net(), tmp_path / "x")
    assert again.state().keys() == model.state().keys()
    np.testing.assert_allclose(again(index()).numpy(), model(index()).numpy(), rtol=1e-5, atol=1e-5)
    other = Net()
    other.head.weight.assign(other.head.weight.numpy() * 2)
    with pytest.raises(FormatError, match="was made for another base"):
        LoraModel(other).load(tmp_path / "x")


def test_models_with_other_names(tmp_path):
    model = random_model(Chain(), LoraConfig(rank=1, alpha=2, bias="all"))
    names = {"first": "net.0", "second": "net.2"}
    model.save(tmp_path / "x", format="peft", rename=names)
    assert config(tmp_path / "x")["target_modules"] == ["net.0", "net.2"]
    assert PREFIX + "net.0.base_layer.bias" in tensors(tmp_path / "x")[0]
    again = LoraModel.from_file(Chain(), tmp_path / "x", rename={"net.0": "first", "net.2": "second"})
    x = np.ones((2, 3), np.float32)
    np.testing.assert_allclose(again(x).numpy(), model(x).numpy(), rtol=1e-5)
    random_model(Chain(), LoraConfig(rank=1)).save(tmp_path / "y", format="peft", rename=names)
    with pytest.raises(FormatError, match=r"'net\.0' matches nothing"):
        LoraModel(Chain()).load(tmp_path / "y")


def test_a_model_that_the_adapter_does_not_fit_says_where(tmp_path):
    save_adapter(tmp_path / "x", state_of({"first": (3, 5, 2, 2.0), "second": (4, 2, 1, 2.0)}), format="peft")
    model = LoraModel(Chain())
    with pytest.raises(FormatError) as error:
        model.load(tmp_path / "x")
    assert "'first': the file has shape [3, 5], the model [3, 4]" in str(error.value)
    assert model.adapters == {}


def test_half_precision_is_widened_and_never_narrowed(tmp_path):
    state = state_of({"first": (3, 4, 2, 2.0)})
    for dtype in ("float16", "float64"):
        changed = AdapterState("default", {}, {name: array.astype(dtype) for name, array in state.tensors.items()}, state.modules)
        save_adapter(tmp_path / dtype, changed, format="peft")
    model = LoraModel.from_file(Chain(), tmp_path / "float16")
    np.testing.assert_array_equal(model.state()["first.lora_A"], state.tensors["first.lora_A"].astype(np.float16).astype(np.float32))
    with pytest.raises(FormatError, match="wrong dtype"):
        LoraModel(Chain()).load(tmp_path / "float64")


def test_fused_projections_go_to_peft_and_come_back(tmp_path):
    from loratk.nn import QKVProjection

    class Attention(Module):
        def __init__(self):
            self.qkv = QKVProjection(8, heads=2, rng=np.random.default_rng(0))

        def forward(self, x):
            return self.qkv(x)

    x = np.random.default_rng(2).standard_normal((3, 8)).astype(np.float32)
    for number, targets in enumerate((["qkv.q", "qkv.v"], ["qkv"])):
        model = random_model(Attention(), LoraConfig(rank=2, alpha=3, targets=targets))
        model.save(tmp_path / str(number), format="peft")
        assert set(read(tmp_path / str(number)).modules) == {"qkv"}
        again = LoraModel.from_file(Attention(), tmp_path / str(number))
        got, want = again(x), model(x)
        for left, right in zip(got, want, strict=True) if isinstance(got, tuple) else ((got, want),):
            np.testing.assert_allclose(left.numpy(), right.numpy(), rtol=1e-4, atol=1e-5)


def test_a_dora_update_is_what_peft_s_is(tmp_path):
    state = read(DATA / "dora")
    net = Net()
    update = dora_update(net.block.fc1.weight.numpy(), state.modules["block.fc1"], state.parameters()["block.fc1"])
    model = LoraModel.from_file(Net(), DATA / "dora")
    close(model.merged_state()["block.fc1.weight"] - net.block.fc1.weight.numpy(), update)


def test_a_bare_file_written_by_hand_needs_no_prefix_to_be_refused_elsewhere(tmp_path):
    write_safetensors(tmp_path / "x.safetensors", {"lin.lora_A.weight": np.zeros((2, 3), np.float32)}, {})
    with pytest.raises(FormatError):
        load_adapter(tmp_path / "x.safetensors")
