"""keras-hub's `.lora.h5`, read: what updates, names and alphas come out, and that weights of a model are no adapter."""

import json

import numpy as np
import pytest
from keras_files import DATA, GEMMA, GEMMA_NAMES, HF, LAYERS, QUERY, kernels, loaded, updates

from loratk.errors import ConfigError, FormatError, LoratkError, UnknownNameError
from loratk.exchange import Checkpoint, detect_format, load_adapter
from loratk.io import Hdf5Store

# What keras-hub wrote


@pytest.mark.parametrize("file", ["gemma", "layers"])
def test_updates_are_those_that_keras_applies(file):
    options = {"map": {1: {"name": "layer_1", "layer_type": "conv1d"}, **{i: f"layer_{i}" for i in (0, 2, 3)}}} if file == "layers" else {}
    state, _ = loaded(DATA / f"{file}.lora.h5", options=options)
    want = {f"layer_{index}": (merged - base).reshape(-1, merged.shape[-1]) for index, (base, merged) in kernels(file).items()}
    got = updates(state)
    assert got.keys() == want.keys()
    for name, update in want.items():
        np.testing.assert_allclose(got[name], update, atol=2e-6)


def test_records_of_all_kinds_of_layers():
    state, notes = loaded(LAYERS, options={"three_axes": "conv1d"})
    said = {name: [record[key] for key in ("layer_type", "shape", "rank", "alpha", "scaling")] for name, record in state.modules.items()}
    assert said == {
        "layer_0": ["conv2d", [18, 4], 3, 3.0, 1.0],
        "layer_1": ["conv1d", [12, 6], 3, 3.0, 1.0],
        "layer_2": ["conv1d", [12, 4], 3, 3.0, 1.0],
        "layer_3": ["linear", [8, 5], 3, 3.0, 1.0],
    }
    assert state.modules["layer_0"]["kernel"] == [3, 2]
    assert state.modules["layer_1"]["kernel"] == [3]
    assert "1 conv2d, 2 conv1d by the number of their axes" in "\n".join(notes)
    state, notes = loaded(LAYERS)
    assert (state.modules["layer_2"]["layer_type"], state.modules["layer_2"]["kernel"]) == ("einsum", [6, 2, 4])


def test_the_evidence_and_where_names_and_alpha_come_from():
    found = detect_format(GEMMA)
    assert (found.format.name, found.evidence) == ("keras", "it has the array /lora/vars/rank")
    assert found.format.adapters(GEMMA) == ["default"]
    state, notes = loaded(GEMMA)
    assert list(state.modules) == ["layer_8", "layer_10", "layer_19", "layer_21"]
    assert "4 layers are named by their number in the model, such as 'layer_8'" in "\n".join(notes)
    assert state.modules["layer_8"]["alpha_source"] == "keras-hub's own, the rank"
    assert state.modules["layer_10"]["kernel"] == [4, 12, 6]


# Names


def test_names_by_a_family():
    state, notes = loaded(GEMMA, options={"family": "gemma"})
    assert [(record["keras_layer"], name) for name, record in state.modules.items()] == list(GEMMA_NAMES.items())
    assert state.modules[GEMMA_NAMES[10]]["equation"] == QUERY
    assert "4 layers named by the table of the family 'gemma' (keras), which fits their shapes" in notes
    state, notes = loaded(GEMMA, options=HF)
    assert list(state.modules) == [f"model.layers.{block}.self_attn.{kind}_proj" for block in (0, 1) for kind in "vq"]
    assert {record["layer_type"] for record in state.modules.values()} == {"linear"}


@pytest.mark.parametrize("spelt", ["pairs", "file", "dict", "objects"])
def test_names_by_a_map(spelt, tmp_path):
    names = {str(number): f"blocks.{number}.π" for number in GEMMA_NAMES}
    more = names | {"3": "not.in.the.file"}
    (tmp_path / "map.json").write_text(json.dumps(more), encoding="utf-8")
    objects = {key: {"name": name, "equation": QUERY, "kernel": [4 if key in ("10", "21") else 2, 12, 6]} for key, name in names.items()}
    given = {"pairs": ", ".join(f"{key}={name}" for key, name in names.items()), "file": str(tmp_path / "map.json"), "dict": more}
    state, notes = loaded(GEMMA, options={"map": given.get(spelt, objects)})
    assert list(state.modules) == list(names.values())
    assert "4 layers named by the map" in notes
    assert ("equation" in state.modules["blocks.8.π"]) == (spelt == "objects")


def test_a_map_that_is_longer_than_any_path():
    names = {number: f"blocks.{number}.{'x' * 400}" for number in GEMMA_NAMES}
    state, _ = loaded(GEMMA, options={"map": ",".join(f"{number}={name}" for number, name in names.items())})
    assert list(state.modules) == list(names.values())


BAD_MAPS = {
    "no number": ({"08": "a", "x": "b", "-1": "c", "9" * 12: "d"}, "'08' is no layer number\n.*'x' .*\n.*'-1' .*\n.*'9999"),
    "no name": (
        {"8": 4, "10": {}, "19": {"name": ""}, "21": {"name": "a..b"}},
        "layer 8 must be .*\n.*layer 10: its name .*\n(.*\n)*.*empty part",
    ),
    "control characters": ({"8": "a\nb"}, "control characters"),
    "one name": ({"8": "a", "10": "a"}, "layers 8, 10 have one name, 'a'"),
    "unknown keys": ({"8": {"name": "a", "rank": 4}}, "unknown key 'rank'"),
    "kinds": ({"8": {"name": "a", "layer_type": "gru"}}, "layer_type must be one of"),
    "equations": ({"8": {"name": "a", "equation": "bd,dh->bd"}}, "neither an input nor an output alone"),
    "kernels": ({"8": {"name": "a", "kernel": [2, -1]}}, "kernel must be the sizes"),
}


@pytest.mark.parametrize(("given", "said"), BAD_MAPS.values(), ids=BAD_MAPS)
def test_a_map_with_faults(given, said):
    with pytest.raises(ConfigError, match=said):
        load_adapter(GEMMA, options={"map": given})


@pytest.mark.parametrize(
    ("text", "said"), [("{", "no JSON"), ("[8]", "must be a JSON object"), ('{"8": "a", "8": "b"}', "a key is given twice")]
)
def test_a_map_file_that_is_none(text, said, tmp_path):
    (tmp_path / "map.json").write_text(text)
    with pytest.raises(ConfigError, match=said):
        load_adapter(GEMMA, options={"map": str(tmp_path / "map.json")})
    with pytest.raises(LoratkError, match=r"cannot read the map of layer numbers 'nowhere.json'"):
        load_adapter(GEMMA, options={"map": "nowhere.json"})
    with pytest.raises(ConfigError, match="a number twice"):
        load_adapter(GEMMA, options={"map": "8=a,8=b"})


def test_names_that_do_not_fit_the_file():
    with pytest.raises(ConfigError, match="does not name layers 10, 19, 21 of the file, which holds layers 8, 10, 19, 21"):
        load_adapter(GEMMA, options={"map": "8=a"})
    with pytest.raises(ConfigError, match=r"(?s)does not fit the family 'llama'.*disagree about the width: 6 .*, 4 "):
        load_adapter(GEMMA, options={"family": "llama"})
    with pytest.raises(ConfigError, match=r"(?s)layer 19 is none of its layers.*that of another block is \[2, 12, 6\]"):
        load_adapter(GEMMA, options={"family": "qwen3"} | {"map": "10=a"})
    with pytest.raises(UnknownNameError, match="'bert', 'gemma'"):
        load_adapter(GEMMA, options={"family": "gemini"})
    with pytest.raises(FormatError, match=r"layer 8: its kernel should be \[2, 12, 7\], and the factors are for \[2, 12, 6\]"):
        load_adapter(GEMMA, options={"family": "gemma", "map": {8: {"name": "a", "kernel": [2, 12, 7]}}})
    with pytest.raises(FormatError, match="layer 8: a layer of the type conv2d has no kernel of 3 axes"):
        load_adapter(GEMMA, options={"family": "gemma", "map": {8: {"name": "a", "layer_type": "conv2d"}}})


# Merged weights


def test_weights_of_a_model_are_no_adapter(tmp_path):
    weights = DATA / "layers.weights.h5"
    with pytest.raises(FormatError, match=r"seems to be Keras model weights, in which LoRA is merged .*save_lora_weights.*--base"):
        load_adapter(weights)
    with pytest.raises(FormatError, match=r"holds no LoRA factors of keras-hub .* the weights of a Keras model"):
        load_adapter(weights, format="keras")
    import zipfile

    with zipfile.ZipFile(tmp_path / "model.keras", "w") as archive:
        archive.writestr("metadata.json", "{}")
        archive.write(weights, "model.weights.h5")
    for more in ({}, {"format": "keras"}):
        with pytest.raises(FormatError, match=r"Keras model, in which LoRA is merged|other format"):
            load_adapter(tmp_path / "model.keras", **more)


def test_weights_of_a_model_are_a_base():
    with Checkpoint(DATA / "layers.weights.h5", {"hdf5": Hdf5Store()}) as base:
        assert base.modules() == ["layers.conv1d", "layers.conv2d", "layers.dense", "layers.einsum_dense"]
        for name, index in (("conv2d", 0), ("conv1d", 1), ("einsum_dense", 2), ("dense", 3)):
            merged = kernels("layers")[index][1]
            np.testing.assert_array_equal(base.weight(f"layers.{name}"), merged.reshape(-1, merged.shape[-1]))
        assert base.shape("layers.einsum_dense") == (6, 2, 4)
