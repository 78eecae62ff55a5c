"""diffusers files: all spellings of keys, shapes as diffusers and PEFT have them, where alpha comes from."""

import json

import numpy as np
import pytest
from diffusers_files import GOLDEN, WEIGHTS, A, B, config, pair, read, torch_order, write

from loratk.errors import FormatError
from loratk.exchange import load_adapter, save_adapter
from loratk.io import open_safetensors

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


def test_the_first_pattern_that_fits_counts_and_an_alpha_tensor_goes_before_rslora(tmp_path):
    metadata = config(r=2, use_rslora=True, alpha_pattern={"a.to_q": 6, "to_q": 4})
    state, _ = read(
        tmp_path, pair("unet.a.to_q") | pair("unet.b.to_q") | pair("unet.c.to_q") | {"unet.c.to_q.alpha": np.array(8.0)}, metadata
    )
    assert [record["alpha"] for record in state.modules.values()] == [6.0, 4.0, 8.0]
    assert [record["scaling"] for record in state.modules.values()] == [6 / 2**0.5, 4 / 2**0.5, 4.0]
    with pytest.raises(FormatError, match=r"alpha_pattern 'a\.to_q' fits no module"):
        read(tmp_path, pair(), config(r=2, alpha_pattern={"to_q": 4, "a.to_q": 6}))


def test_without_alpha_each_module_has_its_own_rank(tmp_path):
    """Never the commonest rank for all."""
    state, notes = read(tmp_path, pair("unet.a") | pair("unet.b") | pair("unet.c", np.ones((3, 4)), np.ones((5, 3))))
    assert [record["scaling"] for record in state.modules.values()] == [1.0] * 3
    assert [record["alpha"] for record in state.modules.values()] == [2.0, 2.0, 3.0]
    assert any("no lora_adapter_metadata" in note for note in notes)
