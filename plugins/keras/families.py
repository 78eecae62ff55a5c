"""Where the layers of known models stand in the list that keras-hub counts: by block, a fixed number apart.

Measured with keras-hub 0.32 (tests/peers/test_keras_hub.py measures again); it promises nothing across versions, so what is read by these
tables is checked against the shapes. To add a family: print the list as docs/keras.md does, and write down one block of it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple


class Role(NamedTuple):
    """One layer of a block: its path there in Keras, its equation (None: a Dense), and its path there in transformers, if it has one."""

    keras: str
    equation: str | None
    hf: str | None = None


@dataclass(frozen=True)
class Family:
    """The layer numbers of a kind of model: the role at number n + stride * block."""

    stride: int
    roles: dict[int, Role]
    keras: str
    """Path of a block in Keras, `{}` its number."""
    hf: str | None = None
    """Path of a block in transformers."""

    def find(self, index: int) -> tuple[Role, int] | None:
        """The role of a layer number and its block, or None."""
        first = min(self.roles)
        block, place = divmod(index - first, self.stride)
        role = self.roles.get(place + first)
        return None if block < 0 or role is None else (role, block)

    def name(self, role: Role, block: int, style: str) -> str | None:
        """The dotted path of a layer; style "keras" or "hf"."""
        place, part = (self.keras, role.keras) if style == "keras" else (self.hf, role.hf)
        return None if place is None or part is None else f"{place.format(block)}.{part}"

    def index(self, path: str) -> int | None:
        """The number of a layer by its path in Keras or transformers, with or without what stands before the block; None if unknown."""
        for number, role in self.roles.items():
            for place, part in ((self.keras, role.keras), (self.hf, role.hf)):
                if place is None or part is None:
                    continue
                before, after = (re.escape(text) for text in place.split("{}"))
                if found := re.fullmatch(rf"(?:.+\.)?{before}([0-9]{{1,6}}){after}\.{re.escape(part)}", path):
                    return number + self.stride * int(found[1])
        return None


def _attention(
    place: str, first: int, *, kernels: tuple[str, str, str], hf: tuple[str, ...] | None = None, gaps: int = 0
) -> dict[int, Role]:
    """Output, value, key and query of an attention, in this order from `first`; `gaps` other layers before key and query."""
    output, key, query = kernels
    names = hf or (None,) * 4
    return {
        first: Role(f"{place}.attention_output", output, names[0]),
        first + 1: Role(f"{place}.value", key, names[1]),
        first + 2 + gaps: Role(f"{place}.key", key, names[2]),
        first + 3 + 2 * gaps: Role(f"{place}.query", query, names[3]),
    }


_HF = tuple(f"self_attn.{letter}_proj" for letter in "ovkq")
_BERT_HF = ("attention.output.dense", *(f"attention.self.{name}" for name in ("value", "key", "query")))
_GEMMA = ("btnh,nhd->btd", "bsd,kdh->bskh", "btd,ndh->btnh")
_LLAMA = ("bquh,uhm->bqm", "bkm,mvh->bkvh", "bqm,muh->bquh")
_MULTI_HEAD = ("abcd,cde->abe", "abc,cde->abde", "abc,cde->abde")
_GEMMA_FFW = {
    2: Role("ffw_linear", "btf,fd->btd", "mlp.down_proj"),
    3: Role("ffw_gating_2", "btd,df->btf", "mlp.up_proj"),
    4: Role("ffw_gating", "btd,df->btf", "mlp.gate_proj"),
}
_GEMMA3_ATTENTION = {
    7: Role("attention.attention_output", _GEMMA[0], _HF[0]),
    10: Role("attention.value", _GEMMA[1], _HF[1]),
    11: Role("attention.key", _GEMMA[1], _HF[2]),
    12: Role("attention.query", _GEMMA[2], _HF[3]),
}


def _feedforward(first: int, *, gate: bool, hf: tuple[str, ...] | None = None) -> dict[int, Role]:
    """The Dense layers of a block in their order: output, gate where there is one, intermediate."""
    parts = ("output", "gate", "intermediate") if gate else ("output", "intermediate")
    names = hf or (None,) * len(parts)
    return {first + at: Role(f"feedforward_{part}_dense", None, name) for at, (part, name) in enumerate(zip(parts, names, strict=True))}


_MLP = ("mlp.down_proj", "mlp.gate_proj", "mlp.up_proj")
_BLOCK, _LAYER, _HF_LAYER = "decoder_block_{}", "transformer_layer_{}", "model.layers.{}"
_llama = Family(11, _feedforward(3, gate=True, hf=_MLP) | _attention("self_attention", 8, kernels=_LLAMA, hf=_HF), _LAYER, _HF_LAYER)
_bert = Family(
    10,
    _feedforward(5, gate=False, hf=("output.dense", "intermediate.dense"))
    | _attention("self_attention_layer", 10, kernels=_MULTI_HEAD, hf=_BERT_HF),
    _LAYER,
    "encoder.layer.{}",
)

FAMILIES = {
    "bert": _bert,
    "gemma": Family(11, _GEMMA_FFW | _attention("attention", 7, kernels=_GEMMA, hf=_HF), _BLOCK, _HF_LAYER),
    "gemma2": Family(13, _GEMMA_FFW | _attention("attention", 8, kernels=_GEMMA, hf=_HF), _BLOCK, _HF_LAYER),
    "gemma3": Family(13, _GEMMA_FFW | _GEMMA3_ATTENTION, _BLOCK, _HF_LAYER),  # of text alone; with images other layers come first
    "gpt2": Family(10, _feedforward(4, gate=False) | _attention("self_attention", 8, kernels=_MULTI_HEAD), _LAYER),
    "llama": _llama,
    "mistral": _llama,
    "mixtral": Family(11, _attention("self_attention", 8, kernels=_LLAMA, hf=_HF), _LAYER, _HF_LAYER),
    "opt": Family(10, _feedforward(5, gate=False) | _attention("self_attention", 9, kernels=_MULTI_HEAD), _LAYER),
    "phi3": Family(11, _feedforward(2, gate=True) | _attention("attention", 7, kernels=_LLAMA), _LAYER),
    "qwen2": _llama,
    "qwen3": Family(
        13, _feedforward(3, gate=True, hf=_MLP) | _attention("self_attention", 8, kernels=_LLAMA, hf=_HF, gaps=1), _LAYER, _HF_LAYER
    ),
    "roberta": _bert,
}
"""Families by name; a model of another size has the same numbers with more blocks."""
