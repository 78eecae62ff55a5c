"""Modules in GGUF: the names llama.cpp has for them, one's own, and stacks of experts."""

import json
import re
import struct

import numpy as np
import pytest
from gguf_adapters import BLOCK, OPTIONS, adapter, applied, assert_close, assert_same, dense_of, linear, llama

from loratk.errors import ConfigError
from loratk.exchange import load_adapter, save_adapter


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
