"""The base's weights: which files, which order, one at a time."""

import json

import numpy as np
import pytest

from loratk.convert import export_merged
from loratk.errors import ConfigError, FormatError, StoreError, UnknownNameError
from loratk.exchange import AdapterState, Checkpoint, save_adapter
from loratk.exchange.conv1d import conv1d_modules
from loratk.io import Hdf5Store, open_safetensors, write_safetensors
from loratk.plugins import default_registry
from loratk.verify import verify

STORES = default_registry().stores
RNG = np.random.default_rng(0)
LINEAR, CONV, TABLE = (RNG.standard_normal(shape).astype(np.float32) for shape in ((4, 6), (5, 3, 2, 1), (7, 4)))


def torch_file(path, metadata=None):
    write_safetensors(path, {"a.weight": LINEAR, "a.bias": LINEAR[:, 0], "c.weight": CONV, "wte.weight": TABLE}, metadata or {})
    return path


def test_weights_of_torch_act_input_first(tmp_path):
    with Checkpoint(torch_file(tmp_path / "m.safetensors"), STORES) as base:
        assert base.modules() == ["a", "c", "wte"]
        assert "output first" in base.note
        assert np.array_equal(base.weight("a"), LINEAR.T)
        assert np.array_equal(base.weight("c"), CONV.transpose(2, 3, 1, 0).reshape(6, 5))
        assert np.array_equal(base.weight("wte"), TABLE)
        assert base.shape("c") == (5, 3, 2, 1)
        assert np.array_equal(base.bias("a"), LINEAR[:, 0])
        assert base.bias("c") is None


def test_the_order_can_be_said_and_is_guessed_from_metadata(tmp_path):
    path = torch_file(tmp_path / "m.safetensors")
    with Checkpoint(path, STORES, "input-first") as base:
        assert np.array_equal(base.weight("a"), LINEAR)
        assert base.note.endswith("as asked")
    with Checkpoint(torch_file(tmp_path / "tf.safetensors", {"format": "tf"}), STORES) as base:
        assert base.order == "input-first"
    with pytest.raises(ConfigError, match="'input-first', 'output-first', found 'upside-down'"):
        Checkpoint(path, STORES, "upside-down")


def test_files_of_loratk_and_keras_are_input_first(tmp_path):
    Hdf5Store().write(tmp_path / "m.h5", {"a.weight": LINEAR, "layers/dense/vars/0": LINEAR, "layers/dense/vars/1": LINEAR[0]}, {})
    with Checkpoint(tmp_path / "m.h5", STORES) as base:
        assert base.modules() == ["a", "layers.dense"]
        assert np.array_equal(base.weight("a"), LINEAR)
        assert np.array_equal(base.bias("layers.dense"), LINEAR[0])


def test_half_precision_and_bfloat16(tmp_path):
    write_safetensors(tmp_path / "m.safetensors", {"a.weight": LINEAR.astype(np.float16), "b.weight": LINEAR}, {}, ["b.weight"])
    with Checkpoint(tmp_path / "m.safetensors", STORES) as base:
        assert base.weight("a").dtype == np.float32
        assert base.bfloat16 == {"b.weight"}
        assert base.arrays()["a.weight"].dtype == np.float16


def test_a_folder_of_shards_is_read_by_its_index(tmp_path):
    write_safetensors(tmp_path / "one.safetensors", {"a.weight": LINEAR}, {})
    write_safetensors(tmp_path / "two.safetensors", {"b.weight": LINEAR}, {})
    with pytest.raises(StoreError, match="cannot tell which files"):
        Checkpoint(tmp_path, STORES)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a.weight": "one.safetensors", "b.weight": "two.safetensors"}}))
    for path in (tmp_path, index):
        with Checkpoint(path, STORES) as base:
            assert base.modules() == ["a", "b"]
    index.write_text(json.dumps({"weight_map": {"a.weight": "../one.safetensors", "b.weight": "three.safetensors"}}))
    with pytest.raises(FormatError, match=r"names '\.\./one\.safetensors', 'three\.safetensors'; its files must lie beside it"):
        Checkpoint(tmp_path, STORES)
    index.write_text("{}")
    with pytest.raises(FormatError, match="needs a 'weight_map'"):
        Checkpoint(tmp_path, STORES)


def test_a_name_in_two_shards_is_an_error(tmp_path):
    for name in ("one", "two"):
        write_safetensors(tmp_path / f"{name}.safetensors", {"a.weight": LINEAR}, {})
    weight_map = {"a.weight": "one.safetensors", "b.weight": "two.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(FormatError, match=r"has 'a\.weight' twice, in 'one\.safetensors' and 'two\.safetensors'"):
        Checkpoint(tmp_path, STORES)


def test_unknown_modules_are_told_with_what_is_near(tmp_path):
    Hdf5Store().write(tmp_path / "m.h5", {"layers.0.q_proj.weight": LINEAR, "steps.weight": np.arange(3)}, {})
    with Checkpoint(tmp_path / "m.h5", STORES) as base:
        assert not base.used
        with pytest.raises(UnknownNameError, match=r"no module 'layers\.0\.qproj' .* 'layers\.0\.q_proj'"):
            base.weight("layers.0.qproj")
        with pytest.raises(FormatError, match=r"must be floating-point numbers of at least two axes, found int64 \(3,\)"):
            base.weight("steps")
        assert base.used


def test_an_adapter_is_no_base(tmp_path, request):
    Hdf5Store().write(tmp_path / "a.h5", {}, {"format": "loratk-adapter"})
    with pytest.raises(FormatError, match="is an adapter file, not the weights"):
        Checkpoint(tmp_path / "a.h5", STORES)


def test_strings_of_the_first_file_count(tmp_path):
    with Checkpoint(torch_file(tmp_path / "m.safetensors", {"format": "pt", "note": "x"}), STORES) as base:
        assert base.strings == {"format": "pt", "note": "x"}


def gpt2(path, square="attn.c_proj"):
    """A file of torch as GPT-2's: Conv1D layers, an output layer and a norm."""
    rng = np.random.default_rng(0)
    arrays = {"h.0.attn.c_attn": (4, 12), f"h.0.{square}": (4, 4), "h.0.mlp.c_proj": (16, 4), "head": (9, 4), "h.0.ln": (4,)}
    biases = {"h.0.attn.c_attn": 12, f"h.0.{square}": 4, "h.0.mlp.c_proj": 4, "head": 9, "h.0.ln": 4}
    write_safetensors(
        path,
        {f"{module}.weight": rng.standard_normal(shape).astype("f4") for module, shape in arrays.items()}
        | {f"{module}.bias": rng.standard_normal(k).astype("f4") for module, k in biases.items()},
        {"format": "pt"},
    )
    return path


def test_conv1d_of_transformers_is_told_by_the_biases(tmp_path):
    """A square one is as those of its name."""
    path = gpt2(tmp_path / "gpt2.safetensors")
    with Checkpoint(path, STORES) as base, open_safetensors(path) as reader:
        assert base.input_first == {"h.0.attn.c_attn", "h.0.attn.c_proj", "h.0.mlp.c_proj"}
        assert "3 as Conv1D of transformers, input first, such as 'h.0.attn.c_attn'" in base.note
        for module in base.input_first:
            np.testing.assert_array_equal(base.weight(module), reader.array(f"{module}.weight"))
        np.testing.assert_array_equal(base.weight("head"), reader.array("head.weight").T)
    with Checkpoint(path, STORES, "output-first") as base:
        assert base.input_first == frozenset()
        assert base.weight("h.0.attn.c_attn").shape == (12, 4)
    with Checkpoint(gpt2(path, square="attn.other"), STORES) as base:
        assert "h.0.attn.other" not in base.input_first


@pytest.mark.parametrize(
    ("shapes", "biases", "want"),
    [({"a.p": (2, 3), "b.p": (3, 2)}, {"a.p": (3,), "b.p": (2,)}, {"a.p", "b.p"}),
     ({"a.p": (2, 3), "b.p": (3, 2), "c.p": (2, 2)}, {"a.p": (3,), "b.p": (3,), "c.p": (2,)}, {"a.p"}),
     ({"a.p": (2, 3)}, {"a.p": (4,)}, set()), ({"a.p": (2, 3)}, {}, set()), ({"a.p": (2, 3, 3)}, {"a.p": (3,)}, set())],
    ids=["all", "torn between two", "a bias that fits nothing", "no bias", "a convolution"],
)  # fmt: skip
def test_what_a_bias_tells(shapes, biases, want):
    assert conv1d_modules(shapes, biases) == want


def test_adapters_of_conv1d_are_merged_the_right_way_round(tmp_path):
    path = gpt2(tmp_path / "gpt2.safetensors")
    rng = np.random.default_rng(1)
    shapes = {"h.0.attn.c_attn": (4, 12), "h.0.attn.c_proj": (4, 4), "head": (4, 9)}
    tensors = {f"{module}.lora_A": rng.standard_normal((d, 2)) for module, (d, _) in shapes.items()}
    tensors |= {f"{module}.lora_B": rng.standard_normal((2, k)) for module, (_, k) in shapes.items()}
    record = {"method": "lora", "layer_type": "linear", "rank": 2, "alpha": 2.0, "scaling": 1.0}
    state = AdapterState("a", {}, tensors, {module: record | {"shape": list(shape)} for module, shape in shapes.items()})
    save_adapter(tmp_path / "x.h5", state)
    export_merged(tmp_path / "x.h5", path, tmp_path / "y.safetensors")
    with Checkpoint(path, STORES) as base:
        assert verify(tmp_path / "x.h5", base=base).faults == []
    with open_safetensors(path) as before, open_safetensors(tmp_path / "y.safetensors") as after:
        for module in shapes:
            update = tensors[f"{module}.lora_A"] @ tensors[f"{module}.lora_B"]
            moved = after.array(f"{module}.weight").astype(float) - before.array(f"{module}.weight")
            np.testing.assert_allclose(moved, update.T if module == "head" else update, atol=1e-5)


def test_factors_alone_are_no_base(tmp_path):
    write_safetensors(tmp_path / "x.safetensors", {"m.lora_A.weight": LINEAR, "m.lora_B.weight": LINEAR.T}, {})
    with pytest.raises(FormatError, match="nothing but an adapter's factors; the base is what"):
        Checkpoint(tmp_path / "x.safetensors", STORES)
