"""kohya and LyCORIS files: names of modules to paths and back, and fused projections."""

import numpy as np
import pytest
from kohya_files import M, close, lora, normal, plain, read, torch_order, write

from loratk.errors import ConfigError, FormatError
from loratk.exchange import load_adapter, save_adapter
from loratk.io import open_safetensors, write_safetensors

# Names.


def test_names_without_a_base_stay_as_they_are(tmp_path):
    state, notes = read(tmp_path, lora())
    assert list(state.modules) == [M]
    assert any("'_' for '.'" in note for note in notes)


def bases(tmp_path, *names):
    write_safetensors(tmp_path / "base.safetensors", {f"{name}.weight": normal(5, 4) for name in names}, {})
    return tmp_path / "base.safetensors"


@pytest.mark.parametrize(
    ("name", "modules", "want"),
    [
        ("lora_unet_a_b_to_q", ["a.b.to_q", "a.b.to_k"], "a.b.to_q"),
        ("lora_unet_a_b_to_q", ["unet.a.b.to_q", "text_encoder.a.b.to_q"], "unet.a.b.to_q"),
        ("lora_unet_a_b_to_q", ["transformer.a.b.to_q"], "transformer.a.b.to_q"),
        ("lora_te_a_fc1", ["text_encoder.a.fc1", "unet.a.fc1"], "text_encoder.a.fc1"),
        ("lora_te1_a_fc1", ["text_encoder.a.fc1", "text_encoder_2.a.fc1"], "text_encoder.a.fc1"),
        ("lora_te2_a_fc1", ["text_encoder.a.fc1", "text_encoder_2.a.fc1"], "text_encoder_2.a.fc1"),
        ("lycoris_model_layers_0_q_proj", ["model.layers.0.q_proj"], "model.layers.0.q_proj"),
    ],
)
def test_names_come_back_from_the_base_and_go_out_again(tmp_path, name, modules, want):
    path = write(tmp_path / "x.safetensors", lora(), name=name)
    reading = load_adapter(path, base=bases(tmp_path, *modules))
    state = reading.states[0]
    assert list(state.modules) == [want]
    assert any("1 of 1 names" in note for note in reading.notes)
    save_adapter(tmp_path / "y.h5", state)
    save_adapter(tmp_path / "y.safetensors", load_adapter(tmp_path / "y.h5").states, format="kohya")
    with open_safetensors(tmp_path / "y.safetensors") as reader:
        assert {key.partition(".")[0] for key in reader.names()} == {name}


def test_a_name_that_may_be_two_modules_is_not_guessed(tmp_path):
    arrays = {f"lora_unet_{name}.{key}": array for name in ("q_proj", "k") for key, array in lora().items()}
    write_safetensors(tmp_path / "x.safetensors", arrays, {})
    reading = load_adapter(tmp_path / "x.safetensors", base=bases(tmp_path, "q.proj", "q_proj", "k"))
    assert list(reading.states[0].modules) == ["k", "lora_unet_q_proj"]
    assert any("'lora_unet_q_proj' may be 'q.proj', 'q_proj'" in note for note in reading.notes)


def test_a_base_of_another_model_is_refused(tmp_path):
    path = write(tmp_path / "x.safetensors", lora())
    with pytest.raises(FormatError, match=r"'lora_unet_m'.*such as 'other'"):
        load_adapter(path, base=bases(tmp_path, "other"))
    write_safetensors(tmp_path / "base.safetensors", {"m.weight": normal(5, 5)}, {})
    with pytest.raises(FormatError, match=r"'m' is for a weight of shape \[4, 5\], the base has \(5, 5\)"):
        load_adapter(path, base=tmp_path / "base.safetensors")


@pytest.mark.parametrize(
    ("modules", "options", "want"),
    [
        (["unet.a.b", "text_encoder.c"], {}, ["lora_unet_a_b", "lora_te_c"]),
        (["text_encoder.c", "text_encoder_2.c"], {}, ["lora_te1_c", "lora_te2_c"]),
        (["transformer.a.b"], {}, ["lora_unet_a_b"]),
        (["model.layers.0.q_proj"], {}, ["lycoris_model_layers_0_q_proj"]),
        (["model.q"], {"prefix": "lora_te"}, ["lora_te_model_q"]),
        (["lora_unet_a_b"], {}, ["lora_unet_a_b"]),
    ],
)
def test_names_for_a_file(tmp_path, modules, options, want):
    notes = save_adapter(tmp_path / "y.safetensors", plain(*modules), format="kohya", options=options)
    with open_safetensors(tmp_path / "y.safetensors") as reader:
        assert {name.partition(".")[0] for name in reader.names()} == set(want)
    assert any("got the prefix 'lycoris'" in note for note in notes) == want[0].startswith("lycoris")


def test_names_that_would_be_one_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"'a\.b_c', 'a_b\.c' are all named 'lycoris_a_b_c'"):
        save_adapter(tmp_path / "y.safetensors", plain("a.b_c", "a_b.c"), format="kohya")
    with pytest.raises(ConfigError, match="a prefix must be letters"):
        save_adapter(tmp_path / "y.safetensors", plain("a"), format="kohya", options={"prefix": "a.b"})


# Fused projections.


def test_fused_projections_split_and_come_together(tmp_path):
    name = "lora_unet_double_blocks_0_img_attn_qkv"
    tensors = lora(k=6) | {"alpha": np.array(1.0)}
    path = write(tmp_path / "x.safetensors", tensors, name=name)
    assert any("split=yes" in note for note in load_adapter(path).notes)
    state = load_adapter(path, options={"split": "yes"}).states[0]
    assert list(state.modules) == [f"{name}.{part}" for part in "qkv"]
    want = tensors["lora_up.weight"] @ tensors["lora_down.weight"] / 2
    for place, part in enumerate("qkv"):
        record = state.modules[f"{name}.{part}"]
        assert (record["columns"], record["shape"], record["rank"]) == ([2 * place, 2 * place + 2], [4, 2], 2)
        close(torch_order(state, f"{name}.{part}"), want[2 * place : 2 * place + 2])
    save_adapter(tmp_path / "y.safetensors", state, format="kohya")
    with open_safetensors(tmp_path / "y.safetensors") as reader:
        for key, array in tensors.items():
            np.testing.assert_array_equal(reader.array(f"{name}.{key}"), array)


def test_a_block_diagonal_projection_splits_into_its_blocks(tmp_path):
    up = np.zeros((6, 3))
    for place in range(3):
        up[2 * place : 2 * place + 2, place] = place + 1
    path = write(tmp_path / "x.safetensors", {"lora_down.weight": normal(3, 4), "lora_up.weight": up, "alpha": np.array(6.0)}, name="m_qkv")
    state = load_adapter(path, options={"split": "yes"}).states[0]
    assert [(record["rank"], record["alpha"], record["scaling"]) for record in state.modules.values()] == [(1, 2.0, 2.0)] * 3
    save_adapter(tmp_path / "y.safetensors", state, format="kohya", options={"prefix": "lora_unet"})
    with open_safetensors(tmp_path / "y.safetensors") as reader:
        np.testing.assert_array_equal(reader.array("lora_unet_m_qkv.lora_up.weight"), up)
        assert reader.array("lora_unet_m_qkv.alpha") == 6.0


def test_blocks_with_several_scalings_and_a_missing_one(tmp_path):
    state = plain("attn.q", "attn.v", shape=[4, 5])
    state.modules["attn.q"] |= {"columns": [0, 5], "alpha": 6.0, "scaling": 3.0}
    state.modules["attn.v"] |= {"columns": [10, 15]}
    save_adapter(tmp_path / "y.safetensors", state, format="kohya", options={"prefix": "lora_unet"})
    got = load_adapter(tmp_path / "y.safetensors").states[0]
    want = np.zeros((15, 4))
    for part, columns in (("q", slice(0, 5)), ("v", slice(10, 15))):
        want[columns] = torch_order(state, f"attn.{part}")
    close(torch_order(got, "lora_unet_attn"), want)
    del state.modules["attn.v"], state.tensors["attn.v.lora_A"], state.tensors["attn.v.lora_B"]
    with pytest.raises(ConfigError, match="its width is not known"):
        save_adapter(tmp_path / "y.safetensors", state, format="kohya")
