"""What GGUF cannot hold is refused by name, and whatever is wrong with a file is an error of loratk."""

import random
import re
import struct

import pytest
from gguf_adapters import BLOCK, OPTIONS, adapter, linear, llama, one

from loratk.errors import ConfigError, LoratkError
from loratk.exchange import load_adapter, save_adapter

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
