"""What is written for PEFT: the shortest targets and patterns that mean just what they should, and refusals by name."""

import os
import re

import numpy as np
import pytest
from peft_nets import DATA, PREFIX, Names, close, read, state_of, tensors, written

from loratk import load_adapter, save_adapter
from loratk.errors import ConfigError
from loratk.exchange.factors import dense_update
from loratk.io import NpzStore


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
