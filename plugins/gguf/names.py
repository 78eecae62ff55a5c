"""Names of modules in transformers to names of tensors in GGUF and back, by architecture: N is the number of a block, E of an expert."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loratk.errors import ConfigError, StoreError, choices, faults
from loratk.io import strict_json

RAW = "gguf"
"""The value of the option `names` that keeps GGUF's own names, and with them its own order of rows."""
STACK = "_exps"
"""The end of the names of tensors that hold a stack of experts."""
MAX_MAP = 1 << 20

_BLOCK = "model.layers.N."
_EMBEDDING = {"model.embed_tokens": "token_embd"}
_OUTPUT = {"lm_head": "output"}
_ATTENTION = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
}  # fmt: skip
_PLAIN = {"mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}
_GATED = {"mlp.gate_proj": "ffn_gate", **_PLAIN}
_EXPERTS = {
    "mlp.gate": "ffn_gate_inp", "mlp.experts.E.gate_proj": "ffn_gate_exps", "mlp.experts.E.up_proj": "ffn_up_exps",
    "mlp.experts.E.down_proj": "ffn_down_exps",
}  # fmt: skip
_SHARED = {
    "mlp.shared_expert.gate_proj": "ffn_gate_shexp", "mlp.shared_expert.up_proj": "ffn_up_shexp",
    "mlp.shared_expert.down_proj": "ffn_down_shexp", "mlp.shared_expert_gate": "ffn_gate_inp_shexp",
}  # fmt: skip
_MIXTRAL = {
    "block_sparse_moe.gate": "ffn_gate_inp", "block_sparse_moe.experts.E.w1": "ffn_gate_exps",
    "block_sparse_moe.experts.E.w2": "ffn_down_exps", "block_sparse_moe.experts.E.w3": "ffn_up_exps",
}  # fmt: skip
_MLX = {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}


def _family(blocks: Mapping[str, str], ends: Mapping[str, str] = _EMBEDDING | _OUTPUT) -> dict[str, str]:
    return {**ends, **{_BLOCK + module: f"blk.N.{tensor}" for module, tensor in blocks.items()}}


_GPT2 = {
    "transformer.wte": "token_embd", "lm_head": "output", "transformer.h.N.attn.c_attn": "blk.N.attn_qkv",
    "transformer.h.N.attn.c_proj": "blk.N.attn_output", "transformer.h.N.mlp.c_fc": "blk.N.ffn_up",
    "transformer.h.N.mlp.c_proj": "blk.N.ffn_down",
}  # fmt: skip

TABLES: dict[str, dict[str, str]] = {
    **dict.fromkeys(
        ("exaone4", "ernie4_5", "gemma3", "granite", "hunyuan-dense", "minicpm", "mistral3", "olmo", "olmo2", "qwen2", "qwen3", "seed_oss",
         "smollm3", "stablelm"),
        _family(_ATTENTION | _GATED),
    ),
    **dict.fromkeys(("cohere2", "command-r", "gemma", "gemma2"), _family(_ATTENTION | _GATED, _EMBEDDING)),  # their output is the embedding
    **dict.fromkeys(("arcee", "nemotron"), _family(_ATTENTION | _PLAIN)),
    **dict.fromkeys(("olmoe", "qwen3moe"), _family(_ATTENTION | _EXPERTS)),
    "llama": _family(_ATTENTION | _GATED | _MIXTRAL),
    "qwen2moe": _family(_ATTENTION | _EXPERTS | _SHARED),
    "phimoe": _family(_ATTENTION | _MIXTRAL),
    "granitemoe": _family(_ATTENTION | {"block_sparse_moe.router.layer": "ffn_gate_inp"}),
    "phi2": _family({**_ATTENTION, "self_attn.dense": "attn_output", "mlp.fc1": "ffn_up", "mlp.fc2": "ffn_down"}),
    "phi3": _family({"self_attn.qkv_proj": "attn_qkv", "self_attn.o_proj": "attn_output", "mlp.gate_up_proj": "ffn_up",
                     "mlp.down_proj": "ffn_down"}),
    "starcoder2": _family({**_ATTENTION, "mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down"}),
    "gpt2": _GPT2,
}  # fmt: skip
"""Module to tensor without its ".weight", for each architecture known here; the tests hold it to gguf-py's table."""
TABLES["phi2"].pop(_BLOCK + "self_attn.o_proj")


class Names:
    """The names of one architecture. `extra` adds to its table: a dict, a JSON file of one, or RAW for GGUF's own names.

    Raises ConfigError for an architecture without a table where `extra` gives none, and for names that make no sense.
    """

    def __init__(self, architecture: str, extra: Any = None) -> None:
        self.raw = extra == RAW
        given = {} if extra is None or self.raw else _given(extra)
        if architecture not in TABLES and not given and not self.raw:
            raise ConfigError(
                f"loratk has no table of names for the architecture {architecture!r}; it has {choices(TABLES)}. Give one with the option "
                f'names=FILE, JSON such as {{"model.layers.N.self_attn.q_proj": "blk.N.attn_q"}}, or keep GGUF\'s names: names={RAW}'
            )
        self.architecture = architecture
        self._to = {**TABLES.get(architecture, {}), **given}
        self._from = {tensor: module for module, tensor in self._to.items()}

    def tensor(self, module: str) -> tuple[str, int | None] | None:
        """The tensor of a module and, of one expert among others, its number; None if it has no name."""
        if self.raw:
            return module, None
        for template, numbers in _templates(_plain(module)):
            if template in self._to:
                return _filled(self._to[template], numbers[:1]), numbers[1] if len(numbers) > 1 else None
        return None

    def module(self, tensor: str) -> str | None:
        """The module of a tensor; of a stack of experts the path without their number. None if it has no name."""
        if self.raw:
            return tensor
        template, numbers = _numbered(tensor)
        if len(numbers) > 1 or template not in self._from:
            return None
        return _filled(self._from[template].replace(".E.", "."), numbers)

    def expert(self, tensor: str, number: int) -> str:
        """The module of one expert of a stack."""
        template, numbers = _numbered(tensor)
        return _filled(self._from[template].replace(".E.", f".{number}."), numbers)


def _plain(module: str) -> list[str]:
    """The parts of a path without what wraps the language model of one that also sees."""
    parts = module.split(".")
    if parts[:2] == ["model", "language_model"]:
        return ["model", *parts[2:]]
    return parts[1:] if parts[0] == "language_model" else parts


def _templates(parts: list[str]) -> list[tuple[str, list[int]]]:
    """The templates a path may be of, with its numbers: as it is, and as a stack of experts as transformers or mlx-lm call it."""
    template, numbers = _numbered(".".join(parts))
    found = [(template, numbers)]
    if len(numbers) == 1 and len(parts) > 2 and parts[-2] in ("experts", "switch_mlp"):
        head = template.split(".")[:-2]
        last = _MLX.get(parts[-1], parts[-1]) if head[-1] == "block_sparse_moe" else parts[-1]
        found.append((".".join([*head, "experts", "E", last]), numbers))
    return found


def _numbered(name: str) -> tuple[str, list[int]]:
    """A name with N and E in place of its first two numbers, and the numbers."""
    parts = name.split(".")
    numbers: list[int] = []
    for place, part in enumerate(parts):
        if part.isascii() and part.isdecimal() and len(part) < 10 and str(int(part)) == part and len(numbers) < 2:
            parts[place] = "NE"[len(numbers)]
            numbers.append(int(part))
    return ".".join(parts), numbers


def _filled(template: str, numbers: list[int]) -> str:
    return ".".join(str(numbers[0]) if part == "N" and numbers else part for part in template.split("."))


def _given(extra: Any) -> dict[str, str]:
    """A table that a user gives, checked: ".weight" may end a tensor's name, and each tensor may be named once."""
    table = extra if isinstance(extra, Mapping) else _read(Path(extra))
    if not isinstance(table, Mapping) or not table or not all(isinstance(text, str) and text for pair in table.items() for text in pair):
        raise ConfigError(f"the option names must be a JSON object of names of modules to names of tensors, found {str(table)[:80]!r}")
    found = {module: tensor.removesuffix(".weight") for module, tensor in table.items()}
    wrong = [
        f"{module!r} to {tensor!r}: N must be in both or in neither, and E in a module if its tensor ends in {STACK!r}"
        for module, tensor in found.items()
        if not _agree(module, tensor)
    ]
    doubled = sorted({tensor for tensor in found.values() if list(found.values()).count(tensor) > 1})
    wrong += [f"{tensor!r} is given to several modules" for tensor in doubled]
    if wrong:
        raise ConfigError(faults("the option names gives a table that cannot be used:", wrong))
    return found


def _agree(module: str, tensor: str) -> bool:
    places = module.split(".")
    return ("N" in places) == ("N" in tensor.split(".")) and ("E" in places) == tensor.endswith(STACK)


def _read(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_MAP + 1)
        if len(raw) > MAX_MAP:
            raise ConfigError(f"the file of names '{path}' is larger than {MAX_MAP} bytes; is it the right one?")
        return strict_json.loads(raw.decode())
    except OSError as error:
        raise StoreError(f"cannot read the file of names '{path}': {error.strerror or error}; or say names={RAW}") from error
    except ValueError as error:
        raise ConfigError(f"the file of names '{path}' is no JSON: {error}") from error
