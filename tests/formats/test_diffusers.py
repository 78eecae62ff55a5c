"""diffusers files: all spellings of keys, where alpha comes from, the config in the header, and what is refused."""

import json
import re
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from loratk_plugins.diffusers.config import Component

from loratk.convert import export_adapters
from loratk.errors import ConfigError, FormatError, LoratkError
from loratk.exchange import AdapterState, detect_format, load_adapter, save_adapter
from loratk.exchange.factors import dense_update
from loratk.io import open_safetensors, write_safetensors
from loratk.io.bfloat16 import to_bits, to_float32
from loratk.plugins import default_registry

GOLDEN = Path(__file__).parent.parent / "data/diffusers"
WEIGHTS = "pytorch_lora_weights.safetensors"
A, B = np.random.default_rng(0).standard_normal((2, 4)), np.random.default_rng(1).standard_normal((5, 2))


def config(component="unet", **fields):
    return {"format": "pt", "lora_adapter_metadata": json.dumps({f"{component}.{key}": value for key, value in fields.items()})}


def write(path, tensors, metadata=None, bfloat16=()):
    write_safetensors(path, {key: np.asarray(array) for key, array in tensors.items()}, metadata or {}, bfloat16)
    return path


def read(tmp_path, tensors, metadata=None, **options):
    reading = load_adapter(write(tmp_path / "x.safetensors", tensors, metadata), **options)
    return reading.states[0], reading.notes


def pair(module="unet.a.to_q", a=A, b=B):
    return {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}


def torch_order(state, module):
    record = state.modules[module]
    matrix = dense_update(record, state.parameters()[module])
    return np.moveaxis(matrix.reshape(*record.get("kernel", []), -1, matrix.shape[1]), (-1, -2), (0, 1))


# Spellings.


@pytest.mark.parametrize(
    ("down", "up", "module"),
    [
        ("unet.a.to_q.lora_A.weight", "unet.a.to_q.lora_B.weight", "unet.a.to_q"),
        ("transformer.a.lora_A.weight", "transformer.a.lora_B.weight", "transformer.a"),
        ("diffusion_model.a.lora_A.weight", "diffusion_model.a.lora_B.weight", "diffusion_model.a"),
        ("unet.a.to_q.lora_A.default.weight", "unet.a.to_q.lora_B.default.weight", "unet.a.to_q"),
        ("unet.a.to_q.lora.down.weight", "unet.a.to_q.lora.up.weight", "unet.a.to_q"),
        ("unet.a.to_out.0.lora.down.weight", "unet.a.to_out.0.lora.up.weight", "unet.a.to_out.0"),
        ("unet.a.attn1.processor.to_q_lora.down.weight", "unet.a.attn1.processor.to_q_lora.up.weight", "unet.a.attn1.to_q"),
        ("unet.a.attn1.processor.to_out_lora.down.weight", "unet.a.attn1.processor.to_out_lora.up.weight", "unet.a.attn1.to_out.0"),
        ("a.attn1.processor.to_k_lora.down.weight", "a.attn1.processor.to_k_lora.up.weight", "a.attn1.to_k"),
        (
            "text_encoder.a.q_proj.lora_linear_layer.down.weight",
            "text_encoder.a.q_proj.lora_linear_layer.up.weight",
            "text_encoder.a.q_proj",
        ),
        (
            "text_encoder.a.self_attn.to_q_lora.down.weight",
            "text_encoder.a.self_attn.to_q_lora.up.weight",
            "text_encoder.a.self_attn.q_proj",
        ),
        ("text_encoder_2.a.to_out_lora.down.weight", "text_encoder_2.a.to_out_lora.up.weight", "text_encoder_2.a.out_proj"),
        ("unet.lora.lora_A.weight", "unet.lora.lora_B.weight", "unet.lora"),
    ],
)
def test_every_spelling_of_a_key(tmp_path, down, up, module):
    state, notes = read(tmp_path, {down: A, up: B})
    assert list(state.modules) == [module]
    np.testing.assert_array_equal(state.tensors[f"{module}.lora_A"], A.T)
    np.testing.assert_array_equal(state.tensors[f"{module}.lora_B"], B.T)
    assert any("old spellings" in note for note in notes) == ("lora_A" not in down)
    assert any("'default' was taken out" in note for note in notes) == ("default" in down)
    assert any("of the unet" in note for note in notes) == down.startswith("a.")


def test_alpha_in_the_old_spellings(tmp_path):
    for prefix, module in (("unet.a.attn1.processor.to_q_lora", "unet.a.attn1.to_q"), ("unet.a.to_q.lora", "unet.a.to_q")):
        tensors = {f"{prefix}.down.weight": A, f"{prefix}.up.weight": B, f"{prefix}.alpha": np.array(6.0)}
        state, _ = read(tmp_path, tensors)
        assert (state.modules[module]["alpha"], state.modules[module]["scaling"]) == (6.0, 3.0)
    state, _ = read(tmp_path, {"unet.a.to_q.lora.down.weight": A, "unet.a.to_q.lora.up.weight": B, "unet.a.to_q.alpha": np.array([6.0])})
    assert state.modules["unet.a.to_q"]["scaling"] == 3.0


def test_two_spellings_of_one_tensor_are_refused(tmp_path):
    with pytest.raises(FormatError, match=r"are both the lora_A of 'unet\.a\.to_q'"):
        read(tmp_path, pair() | {"unet.a.to_q.lora.down.weight": A})
    with pytest.raises(FormatError, match="names of several adapters, 'x', 'y'"):
        read(tmp_path, {"unet.a.lora_A.x.weight": A, "unet.a.lora_B.y.weight": B})


# The shapes, and files of diffusers itself.


@pytest.mark.parametrize("groups", [1, 2])
def test_convolutions(tmp_path, groups):
    rng = np.random.default_rng(3)
    a, b = rng.standard_normal((4, 3, 3, 2)), rng.standard_normal((6, 4 // groups, 1, 1))
    state, _ = read(tmp_path, pair("unet.conv_in", a, b))
    record = state.modules["unet.conv_in"]
    assert (record["layer_type"], record["kernel"], record["rank"], record.get("groups", 1)) == ("conv2d", [3, 2], 4, groups)
    want = np.concatenate(
        [np.einsum("or,rihw->oihw", up[:, :, 0, 0], down) for up, down in zip(np.split(b, groups), np.split(a, groups), strict=True)]
    )
    np.testing.assert_allclose(torch_order(state, "unet.conv_in"), want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", sorted(path.stem for path in GOLDEN.glob("*.safetensors")))
def test_what_diffusers_and_peft_compute(tmp_path, name):
    with open_safetensors(GOLDEN / f"{name}.safetensors") as reader:
        arrays, metadata = {key: reader.array(key) for key in reader.names()}, reader.metadata
    want = {key.removeprefix("want."): array for key, array in arrays.items() if key.startswith("want.")}
    arrays = {key: array for key, array in arrays.items() if key.startswith("unet.")}
    state = load_adapter(write(tmp_path / "x.safetensors", arrays, metadata)).states[0]
    assert state.modules.keys() == want.keys()
    for module, update in want.items():
        np.testing.assert_allclose(torch_order(state, module), update, rtol=1e-5, atol=1e-5)
        record, held = state.modules[module], state.parameters()[module]
        assert record["method"] == ("dora" if name == "dora" else "lora")
        if name == "dora":
            np.testing.assert_array_equal(held["magnitude"], arrays[f"{module}.lora_magnitude_vector"].reshape(-1))
        if name == "bias":
            np.testing.assert_array_equal(held["lora_bias"], arrays[f"{module}.lora_B.bias"])
    save_adapter(tmp_path / WEIGHTS, state)
    with open_safetensors(tmp_path / WEIGHTS) as reader:
        assert {key: reader.array(key).tobytes() for key in reader.names()} == {key: array.tobytes() for key, array in arrays.items()}
        ours, theirs = (json.loads(text["lora_adapter_metadata"]) for text in (reader.metadata, metadata))
    for field in ("r", "lora_alpha", "use_dora", "use_rslora", "lora_bias", "bias"):
        assert ours[f"unet.{field}"] == theirs[f"unet.{field}"]
    again = load_adapter(tmp_path / WEIGHTS).states[0]
    for module, record in state.modules.items():
        assert {key: again.modules[module][key] for key in ("rank", "scaling", "shape")} == {
            key: record[key] for key in ("rank", "scaling", "shape")
        }


# Alpha.


@pytest.mark.parametrize(
    ("metadata", "tensors", "alpha", "scaling", "source"),
    [
        ({}, {}, 2.0, 1.0, "the rank, for there is no alpha"),
        ({}, {"unet.a.to_q.alpha": np.array(8.0)}, 8.0, 4.0, "the file's alpha"),
        (config(r=2, lora_alpha=16), {}, 16.0, 8.0, "the lora_alpha of the header"),
        (config(r=2), {}, 2.0, 1.0, "the rank, for there is no alpha"),
        (config(r=2, lora_alpha=16), {"unet.a.to_q.alpha": np.array(8.0)}, 8.0, 4.0, "the file's alpha"),
        (config(r=2, lora_alpha=16, alpha_pattern={"to_q": 6}), {}, 6.0, 3.0, "the alpha_pattern of the header"),
        (config(r=2, lora_alpha=16, alpha_pattern={"^a.to_q": 6}), {}, 6.0, 3.0, "the alpha_pattern of the header"),
        (config(r=2, lora_alpha=16, alpha_pattern={r"a\.to_q$": 6}), {}, 6.0, 3.0, "the alpha_pattern of the header"),
        (config(r=8, lora_alpha=16, rank_pattern={"a.to_q": 2}), {}, 16.0, 8.0, "the lora_alpha of the header"),
        (config(r=2, lora_alpha=4, use_rslora=True), {}, 4.0, 4 / 2**0.5, "the lora_alpha of the header"),
    ],
)
def test_where_alpha_comes_from(tmp_path, metadata, tensors, alpha, scaling, source):
    state, _ = read(tmp_path, pair() | tensors, metadata)
    record = state.modules["unet.a.to_q"]
    assert (record["alpha"], record["scaling"], record["alpha_source"]) == (alpha, scaling, source)


def test_without_alpha_each_module_has_its_own_rank(tmp_path):
    """Never the commonest rank for all."""
    state, notes = read(tmp_path, pair("unet.a") | pair("unet.b") | pair("unet.c", np.ones((3, 4)), np.ones((5, 3))))
    assert [record["scaling"] for record in state.modules.values()] == [1.0] * 3
    assert [record["alpha"] for record in state.modules.values()] == [2.0, 2.0, 3.0]
    assert any("no lora_adapter_metadata" in note for note in notes)


# Writing.


def plain(*modules, scaling=1.0, **changes):
    record = {"method": "lora", "layer_type": "linear", "shape": [4, 5], "rank": 2, "alpha": 2 * scaling, "scaling": scaling} | changes
    tensors = {f"{module}.{key}": array for module in modules for key, array in {"lora_A": A.T, "lora_B": B.T}.items()}
    return AdapterState("a", {}, tensors, {module: dict(record) for module in modules})


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


# Broken and hostile files.

BROKEN = {
    "no B": ({"unet.a.lora_A.weight": A}, {}, "'unet.a.lora_B.weight' missing"),
    "alpha alone": ({"unet.a.alpha": np.array(1.0)} | pair("unet.b"), {}, "module 'unet.a'"),
    "ranks": (pair(b=np.ones((5, 3))), {}, "disagree about the rank"),
    "rank 0": (pair(a=np.ones((0, 4)), b=np.ones((5, 0))), {}, "must be floating-point numbers"),
    "whole numbers": (pair(a=np.ones((2, 4), np.int64)), {}, "found int64"),
    "one axis": (pair(a=np.ones(2), b=np.ones(2)), {}, "must both have 2 axes"),
    "NaN as alpha": (pair() | {"unet.a.to_q.alpha": np.array(np.nan)}, {}, "one finite number"),
    "two alphas": (pair() | {"unet.a.to_q.alpha": np.ones(2)}, {}, "one finite number"),
    "magnitude": (pair() | {"unet.a.to_q.lora_magnitude_vector": np.ones(4)}, {}, "must have 5 numbers along one axis"),
    "unexpected": (pair() | {"unet.a.to_q.more": A, "what": A}, {}, "'unet.a.to_q.more' is none"),
    "kohya's": (pair() | {"lora_unet_b.lora_down.weight": A}, {}, "'lora_unet_b.lora_down.weight' is none"),
    "control characters": (pair("unet.a\x1b[2J"), {}, "characters that no name has"),
    "an endless name": (pair("unet." + "a." * 70 + "b"), {}, "more than a module has"),
    "another rank": (pair(), config(r=4), "the header gives it rank 4, its tensors have 2"),
    "a rank of no module": (pair(), config(r=2, rank_pattern={"to_v": 4}), "rank_pattern 'to_v' fits no module"),
    "an alpha of no module": (pair(), config(r=2, alpha_pattern={"q": 4}), "alpha_pattern 'q' fits no module"),
    "a target of no module": (pair(), config(r=2, target_modules=["to_q", "to_z"]), "its target 'to_z' is no module"),
    "an expression": (pair(), config(r=2, rank_pattern={"(a+)+$": 2}), "is an expression, which loratk does not run"),
    "no magnitude": (pair(), config(r=2, use_dora=True), "'unet.a.to_q.lora_magnitude_vector' is missing"),
    "no bias": (pair(), config(r=2, lora_bias=True), "'unet.a.to_q.lora_B.bias' is missing"),
    "a magnitude too many": (pair() | {"unet.a.to_q.lora_magnitude_vector": np.ones(5)}, config(r=2), "use_dora is not true"),
    "another component": (pair(), config("transformer", r=2), "has the component 'transformer', the tensors have not"),
    "no component": (pair(), {"lora_adapter_metadata": '{"r": 2}'}, "begins with no component"),
    "rank as text": (pair(), config(r="2"), "r must be a whole number from 1 up"),
    "rank as truth": (pair(), config(r=True), "r must be a whole number from 1 up"),
    "a negative rank": (pair(), config(rank_pattern={"to_q": -1}), "must be a whole number from 1 up"),
    "alpha as text": (pair(), config(lora_alpha="x"), "lora_alpha must be a number"),
    "a huge alpha": (pair(), {"lora_adapter_metadata": '{"unet.lora_alpha": 1' + "0" * 400 + "}"}, "lora_alpha must be a number"),
    "an infinite alpha": (pair(), {"lora_adapter_metadata": '{"unet.lora_alpha": 1e999}'}, "too large for a number"),
    "NaN": (pair(), {"lora_adapter_metadata": '{"unet.lora_alpha": NaN}'}, "NaN is not JSON"),
    "null in a pattern": (pair(), config(rank_pattern={"to_q": None}), "must be a number, found null"),
    "a pattern that is a list": (pair(), config(rank_pattern=[1]), "rank_pattern must be an object"),
    "a flag that is a text": (pair(), config(use_dora="yes"), "use_dora must be true or false"),
    "a key twice": (pair(), {"lora_adapter_metadata": '{"unet.r": 2, "unet.r": 2}'}, "given twice"),
    "no JSON": (pair(), {"lora_adapter_metadata": "{"}, "is not JSON"),
    "no object": (pair(), {"lora_adapter_metadata": "[]"}, "must be a JSON object"),
    "deep": (pair(), {"lora_adapter_metadata": "[" * 100_000}, "nested too deeply"),
}  # fmt: skip


@pytest.mark.parametrize(("tensors", "metadata", "said"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_file_is_refused(tmp_path, tensors, metadata, said):
    with pytest.raises(FormatError, match=re.escape(said)):
        read(tmp_path, tensors, metadata, format="diffusers")


def test_all_faults_are_told_at_once(tmp_path):
    with pytest.raises(FormatError) as caught:
        read(tmp_path, {"unet.a.lora_A.weight": A, "what": A} | pair("unet.b", b=np.ones((5, 3))), config(r=0))
    assert all(part in str(caught.value) for part in ("'unet.a.lora_B.weight'", "'what'", "'unet.b'", "r must be"))


def test_what_may_be_missing_by_name(tmp_path):
    tensors = pair("unet.b") | {"unet.a.lora_A.weight": A}
    state, notes = read(tmp_path, tensors, allow_missing=["unet.a.lora_B.weight"])
    assert list(state.modules) == ["unet.b"]
    assert any("'unet.a' is left out" in note for note in notes)
    state, _ = read(tmp_path, pair("unet.b"), config(r=2, use_dora=True), allow_missing=["unet.b.lora_magnitude_vector"])
    assert state.modules["unet.b"]["method"] == "lora"


def test_many_patterns_cost_no_more_than_their_number():
    """20,000 modules and as many patterns, compared one by one, would take minutes."""
    names, found = [f"a.b{number}" for number in range(20_000)], []
    start = time.perf_counter()
    component = Component("unet", {"r": 1, "alpha_pattern": dict.fromkeys(names, 2), "target_modules": names}, found)
    assert {component.module_alpha(name)[0] for name in names} == {2.0}
    component.finish(names)
    assert found == []
    assert time.perf_counter() - start < 10


PARTS = ("unet", "text_encoder", "a", "to_out", "processor", "to_q_lora", "lora", "lora_linear_layer", "down", "up", "weight", "lora_A",
         "lora_B", "alpha", "bias", "lora_magnitude_vector", "0", "_lora")  # fmt: skip
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["a", "^a", "to_q", "(.*)"]), inner, max_size=2),
    max_leaves=4,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(
        st.lists(st.sampled_from(PARTS), max_size=7).map(".".join),
        st.tuples(st.lists(st.integers(0, 3), max_size=5), st.sampled_from(["f2", "f4", "i4"])),
        min_size=1,
        max_size=6,
    ),
    VALUES,
    st.sampled_from(["r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_dora", "target_modules"]),
)
def test_any_tensors_are_read_or_refused(tmp_path, shapes, value, field):
    tensors = {key: np.ones(shape, dtype) for key, (shape, dtype) in shapes.items()}
    write(tmp_path / "x.safetensors", tensors, {"lora_adapter_metadata": json.dumps({f"unet.{field}": value})})
    try:
        state = load_adapter(tmp_path / "x.safetensors", format="diffusers").states[0]
        save_adapter(tmp_path / WEIGHTS, state, options={"component": "unet"})
        again = load_adapter(tmp_path / WEIGHTS).states[0]
    except LoratkError:
        return
    assert len(again.tensors) == len(state.tensors)
