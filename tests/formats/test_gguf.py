"""GGUF adapters: what llama.cpp applies of a written file is the adapter, and what is read back is what was written."""

import json
import math
import random
import re
import struct
from pathlib import Path

import numpy as np
import pytest
from gguf_files import FACTS, f32, info, pair, raw, string, text, u32
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loratk.errors import ConfigError, LoratkError
from loratk.exchange import AdapterState, load_adapter, save_adapter
from loratk.exchange.factors import dense_update
from loratk.exchange.transform import cast

DATA = Path(__file__).parents[1] / "data"
BLOCK = "model.layers.{}."


def linear(d, k, r, alpha, seed=0, dtype=np.float32, rslora=False, **more):
    rng = np.random.default_rng(seed)
    scaling = alpha / math.sqrt(r) if rslora else alpha / r
    record = {"method": "lora", "layer_type": "linear", "shape": [d, k], "rank": r, "alpha": float(alpha), "scaling": scaling} | more
    stack = (record["experts"],) if "experts" in record else ()
    return record, rng.standard_normal((*stack, d, r)).astype(dtype), rng.standard_normal((*stack, r, k)).astype(dtype)


def adapter(modules, **fields):
    tensors = {f"{name}.{key}": array for name, (_, a, b) in modules.items() for key, array in (("lora_A", a), ("lora_B", b))}
    return AdapterState("default", {}, tensors, {name: record for name, (record, _, _) in modules.items()}, **fields)


def llama(**changes):
    block = {
        BLOCK.format(0) + "self_attn.q_proj": linear(12, 16, 3, 6, 1),
        BLOCK.format(0) + "self_attn.k_proj": linear(12, 8, 3, 6, 2),
        BLOCK.format(10) + "self_attn.v_proj": linear(12, 8, 3, 6, 3),
        BLOCK.format(10) + "self_attn.o_proj": linear(16, 12, 3, 6, 4),
        BLOCK.format(2) + "mlp.gate_proj": linear(12, 20, 3, 6, 5),
        BLOCK.format(2) + "mlp.up_proj": linear(12, 20, 3, 6, 6),
        BLOCK.format(2) + "mlp.down_proj": linear(20, 12, 3, 6, 7),
        "model.embed_tokens": linear(30, 12, 3, 6, 8, layer_type="embedding"),
        "lm_head": linear(12, 30, 3, 6, 9),
    }
    return adapter(block | changes)


OPTIONS = {"architecture": "llama", "n_head": 4, "n_head_kv": 2}


def applied(path, options=OPTIONS):
    """What llama.cpp adds to each weight of the base, in the rows of its own file: alpha / rank, or 1 where alpha is 0, times B A."""
    state = load_adapter(path, options={"names": "gguf"}).states[0]
    return {module: dense_update(state.modules[module], held) for module, held in state.parameters().items()}


def assert_same(got, want):
    assert got.modules.keys() == want.modules.keys()
    assert got.tensors.keys() == want.tensors.keys()
    for key, array in want.tensors.items():
        assert got.tensors[key].dtype == array.dtype, key
        assert got.tensors[key].tobytes() == array.tobytes(), key
    for module, record in want.modules.items():
        mine = {key: value for key, value in got.modules[module].items() if key != "alpha_source"}
        assert mine == {key: value for key, value in record.items() if key != "alpha_source"}


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


def assert_close(got, want):
    """Equal updates but for rounding: the norm of what differs against the norm of the whole."""
    assert np.linalg.norm(got - want) <= 1e-6 * np.linalg.norm(want)


def dense_of(state, module):
    return dense_update(state.modules[module], state.parameters()[module])


def applied_after(tmp_path, options, state=None):
    save_adapter(tmp_path / "applied.gguf", state or llama(), options=options)
    return applied(tmp_path / "applied.gguf")


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


def test_the_embedding_lies_as_llama_cpp_looks_it_up(tmp_path):
    """Rows of lora_a are looked up by token: numpy (v, r), ne = {r, v}; lora_b is (n_embd, r) as ever."""
    save_adapter(tmp_path / "x.gguf", llama(), options=OPTIONS)
    content = (tmp_path / "x.gguf").read_bytes()
    for name, ne in (("lora_a", (3, 30)), ("lora_b", (3, 12))):
        at = content.index(b"token_embd.weight." + name.encode()) + len("token_embd.weight.lora_a")
        assert struct.unpack("<I2Q", content[at : at + 20]) == (2, *ne)


def moe(architecture):
    part = {"llama": "block_sparse_moe.experts.{}.w{}", "qwen3moe": "mlp.experts.{}.{}_proj"}[architecture]
    kinds = (1, 2, 3) if architecture == "llama" else ("gate", "down", "up")
    return adapter(
        {BLOCK.format(1) + part.format(expert, kind): linear(4, 6, 2, 4, 10 * expert + place)
         for expert in range(3) for place, kind in enumerate(kinds)}
    )  # fmt: skip


@pytest.mark.parametrize("architecture", ["llama", "qwen3moe"])
def test_experts_become_a_stack_and_come_back(architecture, tmp_path):
    want = moe(architecture)
    save_adapter(tmp_path / "x.gguf", want, options={"architecture": architecture})
    assert_same(load_adapter(tmp_path / "x.gguf", options={"experts": "split"}).states[0], want)
    stacked = load_adapter(tmp_path / "x.gguf").states[0]
    assert {record["experts"] for record in stacked.modules.values()} == {3}
    some = BLOCK.format(1) + {"llama": "block_sparse_moe.experts.w2", "qwen3moe": "mlp.experts.down_proj"}[architecture]
    assert stacked.modules[some]["shape"] == [4, 6]
    assert stacked.tensors[f"{some}.lora_A"].shape == (3, 4, 2)
    one = some.replace("experts.", "experts.1.")
    np.testing.assert_array_equal(stacked.tensors[f"{some}.lora_B"][1], want.tensors[f"{one}.lora_B"])
    save_adapter(tmp_path / "y.gguf", stacked)
    assert (tmp_path / "y.gguf").read_bytes() == (tmp_path / "x.gguf").read_bytes()


def test_experts_of_several_ranks_and_scalings(tmp_path):
    names = [BLOCK.format(0) + f"mlp.experts.{expert}.up_proj" for expert in range(3)]
    want = adapter({name: linear(4, 6, 1 + expert, 4, expert) for expert, name in enumerate(names)})
    save_adapter(tmp_path / "x.gguf", want, options={"architecture": "olmoe"})
    [update] = applied(tmp_path / "x.gguf").values()
    for expert, name in enumerate(names):
        assert_close(update[expert], dense_of(want, name))


def test_stacks_as_mlx_lm_calls_them(tmp_path):
    state = adapter({BLOCK.format(0) + "mlp.switch_mlp.up_proj": linear(4, 6, 2, 4, experts=3)})
    save_adapter(tmp_path / "x.gguf", state, options={"architecture": "qwen3moe"})
    back = load_adapter(tmp_path / "x.gguf").states[0]
    assert list(back.modules) == [BLOCK.format(0) + "mlp.experts.up_proj"]
    mixtral = adapter({BLOCK.format(0) + "block_sparse_moe.switch_mlp.down_proj": linear(4, 6, 2, 4, experts=3)})
    save_adapter(tmp_path / "y.gguf", mixtral, options={"architecture": "llama"})
    assert list(load_adapter(tmp_path / "y.gguf").states[0].modules) == [BLOCK.format(0) + "block_sparse_moe.experts.w2"]


@pytest.mark.parametrize("prefix", ["language_model.", "model.language_model."])
def test_the_language_part_of_a_model_that_sees(prefix, tmp_path):
    inner = "layers.0.mlp.up_proj" if prefix.startswith("model") else "model.layers.0.mlp.up_proj"
    save_adapter(tmp_path / "x.gguf", adapter({prefix + inner: linear(4, 6, 2, 4)}), options={"architecture": "gemma3"})
    assert list(load_adapter(tmp_path / "x.gguf").states[0].modules) == ["model.layers.0.mlp.up_proj"]


def test_names_of_ones_own(tmp_path):
    table = {"net.N.alpha": "blk.N.ffn_up.weight", "top": "output"}
    (tmp_path / "names.json").write_text(json.dumps(table))
    state = adapter({"net.3.alpha": linear(4, 6, 2, 4), "top": linear(4, 6, 2, 4, 1)})
    for names in (table, str(tmp_path / "names.json")):
        options = {"architecture": "mine", "names": names}
        notes = save_adapter(tmp_path / "x.gguf", state, options=options)
        assert any("does not know the architecture 'mine'" in note for note in notes)
        assert_same(load_adapter(tmp_path / "x.gguf", options={"names": names}).states[0], state)
    with pytest.raises(ConfigError, match=re.escape("no table of names for the architecture 'mine'")):
        load_adapter(tmp_path / "x.gguf")
    raw_names = load_adapter(tmp_path / "x.gguf", options={"names": "gguf"}).states[0]
    assert sorted(raw_names.modules) == ["blk.3.ffn_up", "output"]


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


UP = BLOCK.format(0) + "mlp.up_proj"


def one(name=UP, *, magnitude=False, **record):
    d = 4 if record.get("layer_type") != "conv2d" else 36
    made = linear(d, 6, 2, 4, **record)
    state = adapter({name: made})
    if magnitude:
        state.tensors[f"{name}.magnitude"] = np.ones(6, np.float32)
    return state


REFUSED = {
    "no architecture": (one(), {}, "must be that of the base's own GGUF file"),
    "an architecture without names": (one(), {"architecture": "mamba"}, "no table of names for the architecture 'mamba'"),
    "no number of heads": (one("model.layers.0.self_attn.q_proj"), {"architecture": "llama"}, "n_head=NUMBER"),
    "no number of kv heads": (one("model.layers.0.self_attn.k_proj"), OPTIONS | {"n_head_kv": None}, "n_head_kv=NUMBER"),
    "a wrong number of heads": (one("model.layers.0.self_attn.q_proj"), {"architecture": "llama", "n_head": "4"}, "not divide into pairs"),
    "heads that are no number": (one(), {"architecture": "llama", "n_head": "many"}, "n_head must be a whole number"),
    "no heads": (one(), {"architecture": "llama", "n_head": 0}, "n_head must be a whole number"),
    "permute": (one(), {"architecture": "llama", "permute": "perhaps"}, "permute must be one of yes, true, no, false"),
    "quantize": (one(), {"architecture": "llama", "quantize": "q4_k"}, "quantize must be one of q8_0"),
    "an unknown option": (one(), {"architektur": "llama"}, "no option 'architektur'"),
    "an unknown module": (one("vision.blocks.0.q"), {"architecture": "llama"}, "'vision.blocks.0.q' have no tensor"),
    "a number that is none": (one("model.layers.00.mlp.up_proj"), {"architecture": "llama"}, "have no tensor"),
    "a tied output": (one("lm_head"), {"architecture": "gemma2"}, "'lm_head' have no tensor"),
    "DoRA": (one(magnitude=True, method="dora"), {"architecture": "llama"}, "DoRA magnitudes"),
    "a convolution": (one(layer_type="conv2d", kernel=[3, 3]), {"architecture": "llama"}, "convolutions"),
    "another embedding": (one("model.layers.0.mlp.up_proj", layer_type="embedding"), {"architecture": "llama"}, "that of the tokens alone"),
    "a stack that is none": (one(experts=3), {"architecture": "llama"}, "is no stack of experts"),
    "experts that are missing": (one("model.layers.0.mlp.experts.2.up_proj"), {"architecture": "olmoe"}, "there are none for 0, 1"),
    "a table that repeats": (one(), {"architecture": "x", "names": {"a": "b", "c": "b.weight"}}, "'b' is given to several modules"),
    "a table without N": (one(), {"architecture": "x", "names": {"a.N": "b"}}, "N must be in both or in neither"),
    "a table that is none": (one(), {"architecture": "x", "names": {"a": 4}}, "names must be a JSON object"),
    "a name that is too long": (one("m" * 60), {"architecture": "x", "names": "gguf"}, "at most 63 bytes"),
    "two wrappings of one": (adapter({"lm_head": linear(4, 6, 2, 4), "language_model.lm_head": linear(4, 6, 2, 4)}),
                             {"architecture": "llama"}, "'lm_head' and 'language_model.lm_head' are both 'output'"),
    "tokens that are none": (adapter({BLOCK.format(0) + "mlp.up_proj": linear(4, 6, 2, 4)},
                                     metadata={"adapter.alora.invocation_tokens": "[-1]"}), {"architecture": "llama"}, "whole numbers"),
}  # fmt: skip


@pytest.mark.parametrize(("state", "options", "said"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_written(state, options, said, tmp_path):
    path = tmp_path / "x.gguf"
    path.write_bytes(b"old")
    with pytest.raises(ConfigError, match=re.escape(said)):
        save_adapter(path, state, options=options)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_of_names_that_cannot_be_read(tmp_path):
    (tmp_path / "broken").write_text("{")
    (tmp_path / "large").write_bytes(b" " * (1 << 21))
    for name, said in (("broken", "is no JSON"), ("large", "is larger than"), ("nowhere", "cannot read the file of names")):
        with pytest.raises(LoratkError, match=said):
            save_adapter(tmp_path / "x.gguf", one(), options={"architecture": "llama", "names": str(tmp_path / name)})


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


def test_any_damage_is_an_error_of_loratk(tmp_path):
    """Bytes changed, cut out and doubled at random: read, or refused with a LoratkError."""
    save_adapter(tmp_path / "x.gguf", llama(), options=OPTIONS)
    good = (tmp_path / "x.gguf").read_bytes()
    header = good.index(b"\0" * 20, 900) if b"\0" * 20 in good[900:] else len(good)
    chance, refused = random.Random(1), 0
    path = tmp_path / "y.gguf"
    for _ in range(1500):
        content = bytearray(good)
        for _ in range(chance.randint(1, 3)):
            at, kind = chance.randrange(min(header, len(content)) if chance.random() < 0.9 else len(content)), chance.randrange(4)
            if kind == 0:
                content[at] = chance.choice([0, 1, 255, chance.randrange(256)])
            elif kind == 1:
                content[at : at + 8] = struct.pack("<Q", chance.choice([0, 1 << 31, 1 << 60, (1 << 64) - 1, chance.randrange(1 << 16)]))
            elif kind == 2:
                del content[at : at + chance.randint(1, 40)]
            else:
                content[at:at] = content[at : at + chance.randint(1, 40)]
        path.write_bytes(content)
        try:
            load_adapter(path)
        except LoratkError:
            refused += 1
    assert refused > 700


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
