"""diffusers files: the config in the header, round trips, what they cannot hold, and by what they are known."""

import json

import numpy as np
import pytest
from diffusers_files import WEIGHTS, A, B, config, pair, plain, write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loratk.convert import export_adapters
from loratk.errors import ConfigError
from loratk.exchange import detect_format, load_adapter, save_adapter
from loratk.io import open_safetensors
from loratk.io.bfloat16 import to_bits, to_float32
from loratk.plugins import default_registry

# Writing.


def test_the_config_in_the_header(tmp_path):
    state = plain("unet.a.q", "unet.a.k", "unet.b.a.q", "text_encoder.c", scaling=2.0)
    state.modules["unet.a.q"] |= {"alpha": 1.0, "scaling": 0.5}
    notes = save_adapter(tmp_path / WEIGHTS, state)
    assert any("--portable" in note for note in notes)
    with open_safetensors(tmp_path / WEIGHTS) as reader:
        fields = json.loads(reader.metadata["lora_adapter_metadata"])
        assert reader.metadata["format"] == "pt"
    assert fields == {
        "unet.r": 2, "unet.lora_alpha": 4, "unet.rank_pattern": {}, "unet.alpha_pattern": {"^a.q": 1}, "unet.bias": "none",
        "unet.target_modules": ["a.k", "a.q", "b.a.q"], "unet.use_dora": False, "unet.use_rslora": False, "unet.lora_bias": False,
        "text_encoder.r": 2, "text_encoder.lora_alpha": 4, "text_encoder.rank_pattern": {}, "text_encoder.alpha_pattern": {},
        "text_encoder.target_modules": ["c"], "text_encoder.use_dora": False, "text_encoder.use_rslora": False,
        "text_encoder.lora_bias": False, "text_encoder.bias": "none",
    }  # fmt: skip
    got = load_adapter(tmp_path / WEIGHTS).states[0]
    assert {module: record["scaling"] for module, record in got.modules.items()} == {
        module: record["scaling"] for module, record in state.modules.items()
    }


def test_metadata_goes_round(tmp_path):
    state = plain("unet.a")
    state.metadata.update({"author": "me", "format": "other", "lora_adapter_metadata": "old"})
    save_adapter(tmp_path / WEIGHTS, state)
    assert load_adapter(tmp_path / WEIGHTS).states[0].metadata == {"author": "me"}


def test_one_lora_bias_means_one_for_each_module(tmp_path):
    state = plain("unet.a", "unet.b")
    state.tensors["unet.a.lora_bias"] = np.ones(5)
    save_adapter(tmp_path / WEIGHTS, state)
    got = load_adapter(tmp_path / WEIGHTS).states[0]
    assert (got.tensors["unet.a.lora_bias"].tolist(), got.tensors["unet.b.lora_bias"].tolist()) == ([1.0] * 5, [0.0] * 5)


@pytest.mark.parametrize(
    ("module", "changes", "options", "want"),
    [("a.b", {}, {"component": "transformer"}, "transformer.a.b"), ("a.b", {"prefix": "lora_te2"}, {}, "text_encoder_2.a.b"),
     ("unet.a", {}, {"component": "transformer"}, "unet.a")],
)  # fmt: skip
def test_the_component_of_a_path(tmp_path, module, changes, options, want):
    save_adapter(tmp_path / WEIGHTS, plain(module, **changes), options=options)
    assert list(load_adapter(tmp_path / WEIGHTS).states[0].modules) == [want]


REFUSED = {
    "no component": ("a.b", {}, {}, "the option component gives one"),
    "a name of kohya's": ("lora_unet_a_b", {}, {}, "one of kohya's files"),
    "a component alone": ("unet", {}, {}, "begins with no component"),
    "an embedding": ("unet.a", {"layer_type": "embedding"}, {}, "embeddings"),
    "a block": ("unet.a", {"columns": [0, 5]}, {}, "a block of a fused projection"),
    "no window": ("unet.a", {"layer_type": "conv2d"}, {}, "must have its window"),
    "a bias": ("unet.a", {}, {"bias": np.ones(5)}, "'bias' has no place"),
    "a part with a scale": ("unet.a", {"method": "loha"}, {"hada_w1_a": np.ones(5)}, "other methods"),
}


@pytest.mark.parametrize(("module", "changes", "more", "said"), REFUSED.values(), ids=REFUSED.keys())
def test_what_a_file_cannot_hold(tmp_path, module, changes, more, said):
    state = plain(module, **changes)
    state.tensors.update({f"{module}.{key}": array for key, array in more.items()})
    with pytest.raises(ConfigError, match=said):
        save_adapter(tmp_path / WEIGHTS, state)
    assert list(tmp_path.iterdir()) == []


def test_dora_is_for_a_whole_component(tmp_path):
    state = plain("unet.a", "unet.b", "text_encoder.c")
    state.tensors["unet.a.magnitude"] = np.ones(5)
    state.modules["unet.a"]["method"] = "dora"
    with pytest.raises(ConfigError, match=r"'unet.b' has no DoRA magnitude"):
        save_adapter(tmp_path / WEIGHTS, state)
    with pytest.raises(ConfigError, match="the option component must be one of"):
        save_adapter(tmp_path / WEIGHTS, plain("a"), options={"component": "vae"})


def test_kohya_with_a_base_becomes_diffusers_and_goes_back(tmp_path):
    names = {"lora_unet_a_to_q": "unet.a.to_q", "lora_te_b_fc1": "text_encoder.b.fc1"}
    arrays = {f"{name}.{key}": array for name in names for key, array in {"lora_down.weight": A, "lora_up.weight": B}.items()}
    arrays |= {f"{name}.alpha": np.array(1.0) for name in names}
    write(tmp_path / "x.safetensors", arrays)
    write(tmp_path / "base.safetensors", {f"{path}.weight": np.zeros((5, 4)) for path in names.values()})
    export_adapters(tmp_path / "x.safetensors", tmp_path / WEIGHTS, base=tmp_path / "base.safetensors")
    assert sorted(load_adapter(tmp_path / WEIGHTS).states[0].modules) == sorted(names.values())
    export_adapters(tmp_path / WEIGHTS, tmp_path / "z.safetensors", to="kohya")
    with open_safetensors(tmp_path / "z.safetensors") as reader:
        assert {key: reader.array(key).tolist() for key in reader.names()} == {key: array.tolist() for key, array in arrays.items()}


def test_the_usual_name_chooses_and_the_suffix_alone_does_not(tmp_path):
    assert save_adapter(tmp_path / WEIGHTS, plain("unet.a")) == []
    assert detect_format(tmp_path).format.name == "diffusers"
    assert list(load_adapter(tmp_path).states[0].modules) == ["unet.a"]
    with pytest.raises(ConfigError, match=r"'diffusers', 'kohya', 'safetensors'.*--to"):
        save_adapter(tmp_path / "y.safetensors", plain("unet.a"))
    notes = save_adapter(tmp_path / "y.safetensors", plain("unet.a"), format="diffusers")
    assert any("weight_name='y.safetensors'" in note for note in notes)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.tuples(*[st.integers(1, 5)] * 3),
    window=st.sampled_from([(), (1,), (1, 1), (3, 3), (2, 1, 2)]),
    groups=st.sampled_from([1, 2]),
    dtype=st.sampled_from(["F16", "BF16", "F32", "F64"]),
    alpha=st.floats(-100, 100, width=16),
    dora=st.booleans(),
    seed=st.integers(0, 99),
)
def test_round_trips_are_bit_equal(tmp_path, sizes, window, groups, dtype, alpha, dora, seed):
    (k, c, r), rng, ones = sizes, np.random.default_rng(seed), [1] * len(window)
    groups = groups if window else 1
    k, r = k * groups, r * groups
    tensors = pair("unet.m", rng.standard_normal((r, c, *window)), rng.standard_normal((k, r // groups, *ones)))
    tensors |= {"unet.m.lora_magnitude_vector": rng.standard_normal((1, k, *ones) if window else k)} if dora else {}
    kind = {"F16": np.float16, "F64": np.float64}.get(dtype, np.float32)
    tensors = {key: array.astype(kind) for key, array in tensors.items()}
    if dtype == "BF16":
        tensors = {key: to_float32(to_bits(array)) for key, array in tensors.items()}
    metadata = config(r=r, lora_alpha=alpha, use_dora=dora)
    write(tmp_path / "x.safetensors", tensors, metadata, tensors if dtype == "BF16" else ())
    export_adapters(tmp_path / "x.safetensors", tmp_path / "y.h5", force=True)
    export_adapters(tmp_path / "y.h5", tmp_path / WEIGHTS, force=True)
    with open_safetensors(tmp_path / WEIGHTS) as reader:
        assert set(reader.names()) == tensors.keys()
        for key, array in tensors.items():
            assert (reader.dtype(key), reader.shape(key), reader.array(key).tobytes()) == (dtype, array.shape, array.tobytes())
    want, got = (load_adapter(tmp_path / name).states[0].modules["unet.m"] for name in ("x.safetensors", WEIGHTS))
    assert {key: got[key] for key in ("rank", "alpha", "scaling")} == {key: want[key] for key in ("rank", "alpha", "scaling")}


# Detection.


@pytest.mark.parametrize("key", ["unet.a.lora_A.weight", "text_encoder_2.a.lora_B.weight", "a.processor.to_q_lora.down.weight",
                                 "text_encoder.a.lora_linear_layer.up.weight"])  # fmt: skip
def test_it_is_known_by_its_tensors(tmp_path, key):
    write(tmp_path / "x.safetensors", {key: A})
    assert detect_format(tmp_path / "x.safetensors").format.name == "diffusers"


@pytest.mark.parametrize("key", ["base_model.model.a.lora_A.weight", "a.b.lora_A.weight", "lora_unet_a.lora_down.weight", "unet.a.weight",
                                 "a.lora_a", "unet.a.lora_magnitude_vector", "unet.alpha"])  # fmt: skip
def test_what_belongs_to_others(tmp_path, key):
    write(tmp_path / "x.safetensors", {key: A})
    assert default_registry().formats["diffusers"].detect(tmp_path / "x.safetensors") is None
    (tmp_path / "x.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{broken}")
    assert default_registry().formats["diffusers"].detect(tmp_path / "x.safetensors") is None
    assert default_registry().formats["diffusers"].detect(tmp_path) is None
