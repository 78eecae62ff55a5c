"""PEFT folders: what PEFT wrote is read as PEFT means it, and comes back the same."""

import json
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from peft_nets import DATA, OUTPUTS, PREFIX, Net, base_file, close, config, edited, faults_of, index, read, state_of, tensors

from loratk import AdapterState, LoraModel, load_adapter, save_adapter
from loratk.convert import export_merged
from loratk.errors import FormatError, UnknownNameError
from loratk.exchange import Checkpoint, detect_format
from loratk.exchange.factors import dense_update
from loratk.io import NpzStore
from loratk.io.bfloat16 import to_bits, to_float32

LAYERS = ("everywhere", "dora", "patterns", "rslora", "biases", "lora_bias", "bfloat16", "plain")
FOLDERS = sorted(entry.name for entry in DATA.iterdir() if entry.is_dir())


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
