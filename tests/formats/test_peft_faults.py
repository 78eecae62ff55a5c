"""PEFT folders that are wrong: names that training programs spoilt, promises that are not kept, hostile files; all told at once."""

import contextlib
import json
import os
import re
import shutil

import numpy as np
import pytest
from peft_nets import DATA, PREFIX, config, edited, faults_of, read, state_of, tensors

from loratk import load_adapter, save_adapter
from loratk.errors import ConfigError, FormatError, LoratkError
from loratk.exchange import detect_format

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
    names = ["lora", "lora_A", "base_layer_2.lora_B", "module.fc", "model.base_model.fc", "default", "weight", "original_module"]
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
    assert "has adapter_config.json, but no adapter_model.safetensors" in faults_of(tmp_path / "x")
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
    assert "x/lora' has adapter_config.json, but no" in text
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
