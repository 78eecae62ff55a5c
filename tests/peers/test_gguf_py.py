"""gguf-py, the library of llama.cpp, reads what loratk writes, writes the same bytes, and knows the same names."""

from pathlib import Path

import numpy as np
import pytest

gguf = pytest.importorskip("gguf", reason="gguf-py is not installed; these tests compare with it")

from loratk_plugins.gguf.names import TABLES, Names  # noqa: E402
from loratk_plugins.gguf.q8_0 import dequantize, quantize  # noqa: E402

from loratk.exchange import AdapterState, load_adapter, save_adapter  # noqa: E402
from loratk.exchange.transform import cast  # noqa: E402
from loratk.io.bfloat16 import to_bits  # noqa: E402

D, K, RANK, ALPHA = 64, 32, 8, 16.0
UP, VALUE, EMBED = "model.layers.1.mlp.up_proj", "model.layers.0.self_attn.v_proj", "model.embed_tokens"
TENSORS = {UP: "blk.1.ffn_up", VALUE: "blk.0.attn_v", EMBED: "token_embd"}
TYPES = gguf.GGMLQuantizationType


def adapter(dtype="float32", metadata=None):
    rng = np.random.default_rng(3)
    record = {"method": "lora", "layer_type": "linear", "shape": [D, K], "rank": RANK, "alpha": ALPHA, "scaling": ALPHA / RANK}
    modules = {VALUE: record, UP: record, EMBED: record | {"layer_type": "embedding"}}
    tensors = {}
    for module in modules:
        tensors[f"{module}.lora_A"] = rng.standard_normal((D, RANK)).astype(np.float32)
        tensors[f"{module}.lora_B"] = rng.standard_normal((RANK, K)).astype(np.float32)
    return cast([AdapterState("default", {}, tensors, modules, metadata=metadata or {})], dtype)[0]


def factors(state):
    """The factors by name, as convert_lora_to_gguf.py lays them down."""
    for module in (VALUE, UP, EMBED):
        a, b = state.tensors[f"{module}.lora_A"], state.tensors[f"{module}.lora_B"]
        yield f"{TENSORS[module]}.weight.lora_a", np.ascontiguousarray(a if module == EMBED else a.T)
        yield f"{TENSORS[module]}.weight.lora_b", np.ascontiguousarray(b.T)


def theirs(path: Path, state, encode, metadata):
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, ALPHA)
    metadata(writer)
    for name, array in factors(state):
        stored, kind = encode(array)
        writer.add_tensor(name, stored, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def half_or_blocks(array):
    """What llama.cpp's converter does for q8_0: rows that are no multiple of 32 become float16."""
    if array.shape[-1] % 32:
        return array.astype(np.float16), None
    return gguf.quants.quantize(array, TYPES.Q8_0), TYPES.Q8_0


ENCODE = {
    "float32": lambda array: (array, None),
    "float16": lambda array: (array, None),
    "bfloat16": lambda array: (to_bits(array).view(np.uint8).reshape(*array.shape[:-1], -1), TYPES.BF16),
    "q8_0": half_or_blocks,
}


def no_metadata(writer):
    pass


def some_metadata(writer):
    writer.add_array("adapter.alora.invocation_tokens", [1, 2, 300])
    field = writer.kv_data[0]["adapter.alora.invocation_tokens"]
    field.sub_type = gguf.GGUFValueType.UINT32
    writer.add_uint32("general.base_model.count", 1)
    writer.add_string("general.name", "größe")


SOME = {"adapter.alora.invocation_tokens": "[1, 2, 300]", "general.base_model.count": "1", "general.name": "größe"}


@pytest.mark.parametrize(("metadata", "add"), [({}, no_metadata), (SOME, some_metadata)], ids=["plain", "metadata"])
@pytest.mark.parametrize("dtype", ENCODE)
def test_the_same_bytes(dtype, metadata, add, tmp_path):
    state = adapter("float32" if dtype == "q8_0" else dtype, metadata)
    theirs(tmp_path / "theirs.gguf", state, ENCODE[dtype], add)
    options = {"architecture": "qwen2"} | ({"quantize": "q8_0"} if dtype == "q8_0" else {})
    save_adapter(tmp_path / "ours.gguf", state, options=options)
    assert (tmp_path / "ours.gguf").read_bytes() == (tmp_path / "theirs.gguf").read_bytes()
    back = load_adapter(tmp_path / "theirs.gguf").states[0]
    assert back.metadata == metadata | {"general.architecture": "qwen2"}
    if dtype != "q8_0":
        assert all(back.tensors[key].tobytes() == array.tobytes() for key, array in state.tensors.items())


def test_it_reads_ours(tmp_path):
    state = adapter()
    save_adapter(tmp_path / "x.gguf", state, options={"architecture": "qwen2"})
    reader = gguf.GGUFReader(tmp_path / "x.gguf")
    assert reader.fields["general.architecture"].contents() == "qwen2"
    assert reader.fields["general.type"].contents() == "adapter"
    assert reader.fields["adapter.lora.alpha"].contents() == ALPHA
    got = {tensor.name: tensor for tensor in reader.tensors}
    assert got.keys() == dict(factors(state)).keys()
    for name, want in factors(state):
        assert list(got[name].shape) == list(want.shape[::-1])
        np.testing.assert_array_equal(got[name].data, want)


def test_8_bit_blocks_to_the_bit():
    rng = np.random.default_rng(2)
    x = (rng.standard_normal((500, 64)) * 10.0 ** rng.integers(-6, 4, (500, 1))).astype(np.float32)
    x[3] = 0
    x[4, :32] = np.arange(32) + 0.5
    want = gguf.quants.quantize(x, TYPES.Q8_0)
    np.testing.assert_array_equal(quantize(x), want.reshape(-1))
    np.testing.assert_array_equal(dequantize(want.reshape(-1)), gguf.quants.dequantize(want, TYPES.Q8_0).reshape(-1))


@pytest.mark.parametrize("architecture", TABLES)
def test_the_names_are_those_of_llama_cpp(architecture):
    """Module by module against gguf-py's table; of an expert against the name its converter gives to the stack."""
    known = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}
    table = gguf.get_tensor_name_map(known[architecture], 8)
    names = Names(architecture)
    for module, tensor in TABLES[architecture].items():
        merged = module.replace("block_sparse_moe.experts", "feed_forward.experts").removeprefix("model." if ".w" in module else "")
        want = table.get_name((merged if "feed_forward" in merged else module).replace(".E.", ".").replace(".N.", ".7."))
        assert want == tensor.replace(".N.", ".7.")
        place = module.replace(".N.", ".7.").replace(".E.", ".2.")
        assert names.tensor(place) == (want, 2 if ".E." in module else None)
        assert names.module(want) == place.replace(".2.", ".")
