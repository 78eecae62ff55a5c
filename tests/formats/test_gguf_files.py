"""GGUF files that are broken, hostile, odd, or need to be asked about."""

import math
import struct
import tracemalloc

import numpy as np
import pytest
from gguf_files import ARRAY, FACTS, TEXT, f32, info, pair, raw, string, text, u32

from loratk.errors import ConfigError, FormatError
from loratk.exchange import detect_format, load_adapter

TENSORS, DATA_OF_PAIR = pair()
Q = "blk.0.attn_v.weight"
HOSTILE = {
    "only the mark": (b"GGUF", "the version needs 4 bytes"),
    "version 1": (raw(version=1), "its version is 1"),
    "big-endian": (raw(version=0x03000000), "big-endian"),
    "2^60 values": (raw(counts=(0, 1 << 60)), f"announces {1 << 60} values"),
    "2^60 tensors": (raw(counts=(1 << 60, 0)), f"announces {1 << 60} tensors"),
    "more values than there are": (raw(counts=(0, 5)), "the length of key 4 needs 8 bytes|is empty or has characters"),
    "a huge string": (raw([text("a") + struct.pack("<IQ", TEXT, 1 << 62)]), f"needs {1 << 62} bytes"),
    "a huge key": (raw([struct.pack("<Q", 1 << 63) + bytes(40)]), f"needs {1 << 63} bytes"),
    "a huge array": (raw([text("a") + struct.pack("<IIQ", ARRAY, 4, 1 << 61)]), f"announces {1 << 61} items"),
    "a huge array of strings": (raw([text("a") + struct.pack("<IIQ", ARRAY, TEXT, 1 << 61)]), f"announces {1 << 61} items"),
    "many strings": (raw([text("a") + struct.pack("<IIQ", ARRAY, TEXT, 70_000) + bytes(560_000)]), "no adapter has more than 65536"),
    "nested arrays": (raw([text("a") + struct.pack("<IIQIIQ", ARRAY, ARRAY, 1, ARRAY, ARRAY, 1)]), "array of arrays"),
    "a type that is none": (raw([text("a") + struct.pack("<IQ", 13, 0)]), "unknown type 13"),
    "a bool of 2": (raw([text("a") + struct.pack("<IB", 7, 2)]), "must be 0 or 1 to be a bool, found 2"),
    "bools of 2": (raw([text("a") + struct.pack("<IIQ2B", ARRAY, 7, 2, 1, 2)]), "an item of .* must be 0 or 1"),
    "no UTF-8": (raw([string("a", b"\xff\xfe")]), "is no UTF-8"),
    "a key twice": (raw([*FACTS, FACTS[0]]), "the key 'general.architecture' is given twice"),
    "an empty key": (raw([*FACTS, string("", "x")]), "key '' is empty"),
    "a key with control characters": (raw([*FACTS, string("a\x1b[2J", "x")]), "has characters that no key has"),
    "alignment 0": (raw([*FACTS, u32("general.alignment", 0)]), "a power of 2, found u32 '0'|a power of 2, found u32 0"),
    "alignment 24": (raw([*FACTS, u32("general.alignment", 24)]), "power of 2"),
    "alignment as text": (raw([*FACTS, string("general.alignment", "32")]), "must be a u32"),
    "a huge alignment": (raw([*FACTS, u32("general.alignment", 1 << 31)], TENSORS, DATA_OF_PAIR), "the file was cut short|must lie at"),
    "five axes": (raw(FACTS, [text("t") + struct.pack("<I", 5) + bytes(60)]), "has 5 axes"),
    "2^32 axes": (raw(FACTS, [text("t") + struct.pack("<I", 0xFFFFFFFF) + bytes(60)]), "has 4294967295 axes"),
    "a shape bomb": (raw(FACTS, [info(f"{Q}.lora_a", (1 << 62, 1 << 62))]), "the file was cut short"),
    "a quantised type": (raw(FACTS, [info(f"{Q}.lora_a", (1, 32), 2)]), "ggml's type 2, which loratk does not read; it reads F32"),
    "half a block": (raw(FACTS, [info(f"{Q}.lora_a", (1, 33), 8)]), "no multiple of 32"),
    "a name twice": (raw(FACTS, [TENSORS[0], TENSORS[0]], DATA_OF_PAIR), "is given twice"),
    "a name too long": (raw(FACTS, [info("a" * 64, (1, 1))], bytes(32)), "1 to 63 bytes"),
    "a name with control characters": (raw(FACTS, [info("a\n.lora_a", (1, 1))], bytes(32)), "must have a printable name"),
    "an offset outside": (raw(FACTS, [info(f"{Q}.lora_a", (1, 3), 0, 1 << 63)], bytes(32)), "was cut short"),
    "an overlap": (raw(FACTS, [TENSORS[0], info(f"{Q}.lora_b", (2, 1), 0, 0)], DATA_OF_PAIR), "overlaps tensor"),
    "a hole": (raw(FACTS, [TENSORS[0], info(f"{Q}.lora_b", (2, 1), 0, 64)], bytes(96)), "leaves a hole after tensor"),
    "beside the alignment": (raw(FACTS, [TENSORS[0], info(f"{Q}.lora_b", (2, 1), 0, 12)], bytes(64)), "must lie at a multiple of 32"),
    "cut short": (raw(FACTS, TENSORS, DATA_OF_PAIR)[:-30], "has 8 bytes, but the data has 34"),
    "cut in the header": (raw(FACTS, TENSORS, DATA_OF_PAIR)[:200], "bytes at byte .*, but only"),
    "bytes after it": (raw(FACTS, TENSORS, DATA_OF_PAIR + bytes(64)), "64 bytes follow the last tensor"),
    "a whole model": (raw([FACTS[0], string("general.type", "model")]), "it holds a whole model, not an adapter"),
    "no type": (raw([FACTS[0]], TENSORS, DATA_OF_PAIR), "general.type must be 'adapter', found nothing"),
    "another adapter": (raw([*FACTS[:2], string("adapter.type", "x")], TENSORS, DATA_OF_PAIR), "adapter.type must be 'lora', found string"),
    "no architecture": (raw(FACTS[1:], TENSORS, DATA_OF_PAIR), "general.architecture must name"),
    "alpha as text": (raw([*FACTS[:3], string("adapter.lora.alpha", "16")], TENSORS, DATA_OF_PAIR), "must be a finite f32"),
    "alpha NaN": (raw([*FACTS[:3], f32("adapter.lora.alpha", math.nan)], TENSORS, DATA_OF_PAIR), "must be a finite f32, found f32 'nan'"),
    "alpha infinite": (raw([*FACTS[:3], f32("adapter.lora.alpha", -math.inf)], TENSORS, DATA_OF_PAIR), "must be a finite f32"),
    "no factors": (raw(), "it holds no factors"),
    "half a pair": (raw(FACTS, TENSORS[:1], DATA_OF_PAIR[:32]), "lacks its lora_b"),
    "a bias": (raw(FACTS, [*TENSORS, info("blk.0.attn_v.bias", (2,), 0, 64)], DATA_OF_PAIR + bytes(32)), "neither a .lora_a nor a .lora_b"),
    "no weight": (raw(FACTS, pair("blk.0.attn_v")[0], DATA_OF_PAIR), "ending in '.weight'"),
    "rank against rank": (raw(FACTS, [info(f"{Q}.lora_a", (2, 3)), info(f"{Q}.lora_b", (2, 3), 0, 32)], bytes(64)), "about the rank"),
    "rank 0": (raw(FACTS, [info(f"{Q}.lora_a", (0, 3)), info(f"{Q}.lora_b", (2, 0), 0, 0)]), "of size 0"),
    "a stack that is none": (raw(FACTS, [info(f"{Q}.lora_a", (2, 1, 3)), info(f"{Q}.lora_b", (2, 2, 1), 0, 32)], bytes(64)), "2 axes"),
    "experts that disagree": (raw(FACTS, [info("blk.0.ffn_up_exps.weight.lora_a", (2, 1, 3)),
                                          info("blk.0.ffn_up_exps.weight.lora_b", (3, 2, 1), 0, 32)], bytes(64)), "number of experts"),
    "NaN": (raw(FACTS, TENSORS, np.full(16, np.nan, "<f4").tobytes()), "NaN or infinite"),
}  # fmt: skip


@pytest.mark.parametrize(("content", "said"), HOSTILE.values(), ids=HOSTILE.keys())
def test_a_broken_file_is_refused(content, said, tmp_path):
    path = tmp_path / "x.gguf"
    path.write_bytes(content)
    assert detect_format(path).format.name == "gguf"
    with pytest.raises(FormatError):  # what is imported on the way is not counted
        load_adapter(path)
    tracemalloc.start()
    with pytest.raises(FormatError, match=said):
        load_adapter(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20


def test_all_faults_are_told_at_once(tmp_path):
    bad = [info("b\n", (1, 1), 5), info(f"{Q}.lora_a", (1, 33), 8)]
    (tmp_path / "x").write_bytes(raw([*FACTS, FACTS[1], u32("general.alignment", 3)], bad, bytes(64)))
    with pytest.raises(FormatError) as caught:
        load_adapter(tmp_path / "x")
    for part in ("'general.type' is given twice", "power of 2", "printable name", "type 5", "no multiple of 32"):
        assert part in str(caught.value)
    names = [*TENSORS, info("x.weight.lora_a", (1, 3), 0, 64), info("y", (1, 3), 0, 96)]
    (tmp_path / "x").write_bytes(raw(FACTS[:1] + FACTS[3:], names, DATA_OF_PAIR + bytes(64)))
    with pytest.raises(FormatError) as caught:
        load_adapter(tmp_path / "x")
    for part in ("general.type must be", "adapter.type must be", "'x.weight' lacks its lora_b", "'y' is neither"):
        assert part in str(caught.value)


def test_what_has_to_be_asked(tmp_path):
    q = raw(FACTS, pair("blk.0.attn_q.weight", k=8)[0], bytes(64))
    (tmp_path / "x").write_bytes(q)
    with pytest.raises(ConfigError, match=r"n_head=NUMBER"):
        load_adapter(tmp_path / "x")
    with pytest.raises(ConfigError, match=r"n_head=3 heads do not divide"):
        load_adapter(tmp_path / "x", options={"n_head": "3"})
    load_adapter(tmp_path / "x", options={"permute": "no"})
    (tmp_path / "x").write_bytes(raw([*FACTS, u32("llama.attention.head_count", 2)], pair("blk.0.attn_q.weight", k=8)[0], bytes(64)))
    load_adapter(tmp_path / "x")
    (tmp_path / "x").write_bytes(raw(FACTS, pair("blk.0.ssm_in.weight")[0], bytes(64)))
    with pytest.raises(ConfigError, match=r"'blk.0.ssm_in.weight' has no module in the table of 'llama'.*names=FILE"):
        load_adapter(tmp_path / "x")


def test_what_ggml_allows(tmp_path):
    """Version 2, another alignment, no padding after the last tensor, norms, which llama.cpp skips, and axes of 1 left out or added."""
    norm = info("blk.0.attn_norm.weight", (4,), 0, 128)
    small = [info(f"{Q}.lora_a", (3,)), info(f"{Q}.lora_b", (1, 1, 2, 1), 0, 64)]
    content = raw([*FACTS, u32("general.alignment", 64)], [*small, norm], bytes(64) + bytes(64) + bytes(16), version=2, alignment=64)
    (tmp_path / "x").write_bytes(content)
    reading = load_adapter(tmp_path / "x")
    assert any("'blk.0.attn_norm.weight' is left out, as llama.cpp leaves it out" in note for note in reading.notes)
    assert [record["shape"] for record in reading.states[0].modules.values()] == [[3, 2]]


def test_found_by_content(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(raw(FACTS, TENSORS, DATA_OF_PAIR))
    found = detect_format(tmp_path / "x.safetensors")
    assert (found.format.name, "general.type is 'adapter' ('lora')" in found.evidence) == ("gguf", True)
    (tmp_path / "x.gguf").write_bytes(b"GGML" + bytes(100))
    with pytest.raises(FormatError, match="no store recognises"):
        detect_format(tmp_path / "x.gguf")
