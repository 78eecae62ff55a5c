"""GGUF adapters: what llama.cpp applies of a written file is the adapter, and what is read back is what was written."""

import re
import struct
from pathlib import Path

import numpy as np
import pytest
from gguf_adapters import BLOCK, OPTIONS, adapter, applied, applied_after, assert_close, assert_same, dense_of, linear, llama
from gguf_files import FACTS, f32, info, pair, raw, string, text, u32
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loratk.errors import ConfigError
from loratk.exchange import AdapterState, load_adapter, save_adapter
from loratk.exchange.transform import cast

DATA = Path(__file__).parents[1] / "data"


def test_a_file_of_gguf_py(tmp_path):
    path = DATA / "gguf-py-0.19-lora.gguf"
    reading = load_adapter(path, options={"n_head": 4})
    [state] = reading.states
    module = "model.layers.0.self_attn.q_proj"
    want = {"method": "lora", "layer_type": "linear", "shape": [64, 32], "rank": 8, "alpha": 16.0, "scaling": 2.0}
    assert state.modules == {module: want | {"alpha_source": "adapter.lora.alpha"}}
    content = path.read_bytes()
    a = np.frombuffer(content[-3072:], np.float32, 512).reshape(8, 64)
    b = np.frombuffer(content[-1024:], np.float32).reshape(32, 8)
    np.testing.assert_array_equal(state.tensors[f"{module}.lora_A"], a.T)
    rows = [head * 8 + half + 2 * place for head in range(4) for half in range(2) for place in range(4)]
    np.testing.assert_array_equal(state.tensors[f"{module}.lora_B"], b[rows].T)
    assert any("order of transformers (n_head 4)" in note for note in reading.notes)
    save_adapter(tmp_path / "again.gguf", load_adapter(path, options={"names": "gguf"}).states, options={"names": "gguf"})
    assert (tmp_path / "again.gguf").read_bytes() == content


def test_the_bytes_of_a_small_file(tmp_path):
    tensors, data = pair()
    record = {"method": "lora", "layer_type": "linear", "shape": [3, 2], "rank": 1, "alpha": 16.0, "scaling": 16.0}
    a, b = np.array([[1], [2], [3]], np.float32), np.array([[1, 2]], np.float32)
    state = adapter({"model.layers.0.self_attn.v_proj": (record, a, b)}, metadata={"general.name": "tiny"})
    save_adapter(tmp_path / "x.gguf", state, options={"architecture": "llama"})
    assert (tmp_path / "x.gguf").read_bytes() == raw([*FACTS, string("general.name", "tiny")], tensors, data)


def test_every_kind_of_module_comes_back_bit_for_bit(tmp_path):
    want = llama()
    notes = save_adapter(tmp_path / "x.gguf", want, options=OPTIONS)
    assert any("llama.cpp's order (n_head 4, n_head_kv 2)" in note for note in notes)
    got = load_adapter(tmp_path / "x.gguf").states[0]  # the numbers of heads are in the file
    assert_same(got, want)
    assert got.metadata["general.architecture"] == "llama"
    save_adapter(tmp_path / "y.gguf", got)  # and with the architecture in the metadata
    assert (tmp_path / "y.gguf").read_bytes() == (tmp_path / "x.gguf").read_bytes()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_dtypes_are_kept(dtype, tmp_path):
    want = cast([llama()], dtype)[0]
    notes = save_adapter(tmp_path / "x.gguf", want, options=OPTIONS)
    assert any({"float16": "18 F16", "bfloat16": "18 BF16", "float32": "18 F32"}[dtype] in note for note in notes)
    assert_same(load_adapter(tmp_path / "x.gguf").states[0], want)


def test_float64_becomes_float32(tmp_path):
    name = BLOCK.format(0) + "self_attn.v_proj"
    save_adapter(tmp_path / "x.gguf", adapter({name: linear(4, 4, 2, 4, dtype=np.float64)}), options={"architecture": "qwen2"})
    got = load_adapter(tmp_path / "x.gguf").states[0].tensors[f"{name}.lora_A"]
    np.testing.assert_array_equal(got, linear(4, 4, 2, 4, dtype=np.float64)[1].astype(np.float32))
    big = adapter({name: (linear(1, 1, 1, 1)[0], np.array([[1e300]]), np.array([[1.0]]))})
    with pytest.raises(ConfigError, match="numbers that float32 does not"):
        save_adapter(tmp_path / "x.gguf", big, options={"architecture": "qwen2"})


def test_rows_of_q_and_k_go_where_the_base_has_them(tmp_path):
    """Row i and row i + half of a head, which transformers turns together, become neighbours 2 i and 2 i + 1."""
    heads, half = 4, 2
    update = applied_after(tmp_path, OPTIONS)["blk.0.attn_q"]
    plain = dense_of(llama(), BLOCK.format(0) + "self_attn.q_proj")
    for head in range(heads):
        for place in range(half):
            for side in range(2):
                want = plain[:, head * 2 * half + side * half + place]
                np.testing.assert_allclose(update[:, head * 2 * half + 2 * place + side], want)
    qwen = applied_after(tmp_path, {"architecture": "qwen2"})["blk.0.attn_q"]
    np.testing.assert_allclose(qwen, plain)
    asked = applied_after(tmp_path, OPTIONS | {"permute": "no"})["blk.0.attn_q"]
    np.testing.assert_allclose(asked, plain)


def test_scalings_that_one_alpha_cannot_give_are_in_lora_b(tmp_path):
    names = [BLOCK.format(0) + f"mlp.{part}_proj" for part in ("gate", "up", "down")]
    mixed = adapter({names[0]: linear(4, 6, 2, 16, 1), names[1]: linear(4, 6, 3, 16, 2), names[2]: linear(6, 4, 2, 10, 3, rslora=True)})
    notes = save_adapter(tmp_path / "x.gguf", mixed, options={"architecture": "llama"})
    assert any("alpha 16 gives the scaling of 2 tensors; that of 'blk.0.ffn_down' is in lora_b" in note for note in notes)
    for name, update in zip(
        names, sorted(applied(tmp_path / "x.gguf").items(), key=lambda item: "gate up down".find(item[0][10:])), strict=True
    ):
        assert_close(update[1], dense_of(mixed, name))
    back = load_adapter(tmp_path / "x.gguf").states[0]
    assert [back.modules[name]["alpha"] for name in names] == [16.0, 16.0, 16.0]
    for name in names[:2]:  # nothing was folded here
        assert back.tensors[f"{name}.lora_B"].tobytes() == mixed.tensors[f"{name}.lora_B"].tobytes()


def test_a_scaling_of_zero_stays_zero(tmp_path):
    """llama.cpp takes alpha 0 as scaling 1."""
    name = BLOCK.format(0) + "mlp.up_proj"
    save_adapter(tmp_path / "x.gguf", adapter({name: linear(4, 6, 2, 0)}), options={"architecture": "llama"})
    assert not applied(tmp_path / "x.gguf")["blk.0.ffn_up"].any()


@pytest.mark.parametrize("fields", [FACTS[:3], [*FACTS[:3], f32("adapter.lora.alpha", 0.0)]], ids=["missing", "zero"])
def test_alpha_that_is_missing_or_zero_means_scaling_one(fields, tmp_path):
    tensors, data = pair(r=1)
    (tmp_path / "x").write_bytes(raw(fields, tensors, data))
    [record] = load_adapter(tmp_path / "x").states[0].modules.values()
    assert (record["alpha"], record["scaling"]) == (1.0, 1.0)
    assert "takes as scaling 1" in record["alpha_source"]


def test_half_precision_is_kept_where_folding_allows_it(tmp_path):
    names = [BLOCK.format(0) + f"mlp.{part}_proj" for part in ("gate", "up", "down")]
    modules = {names[0]: linear(4, 6, 2, 4, 1), names[1]: linear(4, 6, 2, 8, 2), names[2]: linear(6, 4, 2, 4.4, 3)}
    state = cast([adapter(modules | {BLOCK.format(1) + "mlp.up_proj": linear(4, 6, 2, 4, 4)})], "bfloat16")[0]
    save_adapter(tmp_path / "x.gguf", state, options={"architecture": "llama"})
    back = load_adapter(tmp_path / "x.gguf").states[0]
    marks = [back.modules[name].get("dtypes", {}).get("lora_B") for name in names]
    assert marks == ["bfloat16", "bfloat16", None]
    for name in names:
        assert_close(dense_of(back, name), dense_of(state, name))


def test_metadata_comes_back(tmp_path):
    name = BLOCK.format(0) + "mlp.up_proj"
    metadata = {"general.name": "Größe", "general.base_model.count": "1", "adapter.lora.task_name": "x",
                "adapter.alora.invocation_tokens": "[1, 4294967295]", "my.own": "7"}  # fmt: skip
    save_adapter(tmp_path / "x.gguf", adapter({name: linear(4, 6, 2, 4)}, metadata=metadata), options={"architecture": "llama"})
    content = (tmp_path / "x.gguf").read_bytes()
    assert text("adapter.alora.invocation_tokens") + struct.pack("<IIQII", 9, 4, 2, 1, 4294967295) in content
    assert u32("general.base_model.count", 1) in content
    reading = load_adapter(tmp_path / "x.gguf")
    assert reading.states[0].metadata == metadata | {"general.architecture": "llama"}
    assert any("activated LoRA" in note for note in reading.notes)
    named = AdapterState("summer", {}, *(getattr(adapter({name: linear(4, 6, 2, 4)}), part) for part in ("tensors", "modules")))
    save_adapter(tmp_path / "x.gguf", named, options={"architecture": "llama"})
    assert load_adapter(tmp_path / "x.gguf").states[0].metadata["general.name"] == "summer"


def test_8_bit_blocks(tmp_path):
    """x = step * byte, exactly; written ones are within half a step, and rows that are no multiple of 32 become float16."""
    rng = np.random.default_rng(5)
    blocks = rng.integers(0, 256, (4, 34), dtype=np.uint8)
    blocks[:, :2] = rng.standard_normal(4).astype("<f2").view(np.uint8).reshape(4, 2)
    b = np.ones((2, 2), "<f4").tobytes() + bytes(16)
    tensors = [info("blk.0.attn_v.weight.lora_a", (2, 64), 8), info("blk.0.attn_v.weight.lora_b", (2, 2), 0, 160)]
    (tmp_path / "x").write_bytes(raw(FACTS, tensors, blocks.tobytes() + bytes(24) + b))
    reading = load_adapter(tmp_path / "x")
    want = [
        [float(np.frombuffer(block[:2].tobytes(), "<f2")[0]) * int(np.int8(byte)) for byte in block[2:].view(np.int8)] for block in blocks
    ]
    got = reading.states[0].tensors["model.layers.0.self_attn.v_proj.lora_A"]
    np.testing.assert_array_equal(got.T, np.array(want, np.float32).reshape(2, 64))
    assert any("Q8_0" in note for note in reading.notes)
    name = BLOCK.format(0) + "mlp.up_proj"
    state = adapter({name: linear(64, 32, 2, 4)})
    notes = save_adapter(tmp_path / "y.gguf", state, options={"architecture": "llama", "quantize": "q8_0"})
    assert any("1 F16, 1 Q8_0" in note for note in notes)
    assert any(re.search(r"leave out 0\.[1-9]\d% of what they hold", note) for note in notes)
    back = load_adapter(tmp_path / "y.gguf").states[0].tensors
    x, y = (tensors[f"{name}.lora_A"].T.reshape(-1, 32) for tensors in (state.tensors, back))
    step = np.abs(x).max(axis=1, keepdims=True) / 127
    assert (np.abs(x - y) <= step * 0.57).all()  # half a step, and the rounding of the step to float16
    np.testing.assert_array_equal(back[f"{name}.lora_B"], state.tensors[f"{name}.lora_B"].astype(np.float16))


shapes = st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 4))


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.lists(shapes, min_size=1, max_size=4),
    dtypes=st.lists(st.sampled_from(["float16", "bfloat16", "float32"]), min_size=4, max_size=4),
    alpha=st.floats(0.25, 64, width=32),
    heads=st.integers(1, 3),
    stack=st.integers(1, 3),
)
def test_any_shapes_and_dtypes(sizes, dtypes, alpha, heads, stack, tmp_path):
    names = ["model.embed_tokens", "model.layers.7.self_attn.q_proj", "model.layers.7.block_sparse_moe.experts.w3", "lm_head"]
    facts = [{"layer_type": "embedding"}, {}, {"experts": stack}, {}]
    rank = sizes[0][2]
    tensors, modules = {}, {}
    for (d, k, _), dtype, name, more in zip(sizes, dtypes, names, facts, strict=False):
        made = linear(d, 2 * heads * k if "q_proj" in name else k, rank, alpha, **more)
        cast_one = cast([adapter({name: made})], dtype)[0]
        tensors |= cast_one.tensors
        modules |= cast_one.modules
    want = AdapterState("default", {}, tensors, modules)
    save_adapter(tmp_path / "x.gguf", want, options={"architecture": "llama", "n_head": heads})
    assert_same(load_adapter(tmp_path / "x.gguf").states[0], want)
