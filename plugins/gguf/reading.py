"""A GGUF adapter into an AdapterState: pairs of tensors, named and ordered as in transformers, with the scaling that llama.cpp applies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from loratk.errors import ConfigError, FormatError, choices, faults
from loratk.exchange import AdapterState
from loratk.exchange.torch_layout import from_torch

from .file import GgufReader
from .metadata import ALPHA, ARCHITECTURE, KIND, TOKENS, TYPE, to_strings, whole_number
from .names import STACK, Names
from .options import Heads, choice
from .rows import HEAD_KEYS, deinterleave
from .values import Value

EMBEDDING = "token_embd"
HALVES = ("lora_a", "lora_b")
Shapes = dict[str, dict[str, tuple[int, ...]]]
Module = tuple[dict[str, Any], dict[str, np.ndarray]]


class Adapter:
    """What is read of a file: `state`, and notes. Faults of the file are collected, and told together."""

    def __init__(self, reader: GgufReader, path: Path, options: Mapping[str, Any]) -> None:
        self._reader, self._path = reader, path
        self.notes: list[str] = []
        found: list[str] = []
        self._architecture, self._alpha = _facts(reader.fields, found)
        pairs = self._pairs(found)
        self._raise(found, FormatError, "is not an adapter of llama.cpp")
        self._names = Names(self._architecture, options["names"])
        known = {name: whole_number(reader.fields, f"{self._architecture}.{key}") for name, key in HEAD_KEYS.items()}
        permute = "no" if self._names.raw else options["permute"]
        self._heads = Heads(self._architecture, permute, options, {name: count for name, count in known.items() if count is not None})
        self._split = choice("experts", options["experts"], {"stacked": False, "split": True})
        asked: list[str] = []
        modules = self._modules(pairs, asked)
        self._raise(asked, ConfigError, "cannot be read without knowing more")
        self.state = self._state(modules)

    def _raise(self, found: list[str], kind: type[Exception], what: str) -> None:
        if found:
            raise kind(faults(f"'{self._path}' {what}:", found))

    def _pairs(self, found: list[str]) -> Shapes:
        """The shapes of both factors by the name of the base's tensor. A pair that is none goes to `found`."""
        pairs: Shapes = {}
        for name, entry in self._reader.entries.items():
            tensor, _, half = name.rpartition(".")
            if half in HALVES:
                pairs.setdefault(tensor, {})[half] = entry.shape
            elif name.endswith("_norm.weight"):
                self.notes.append(f"tensor {name!r} is left out, as llama.cpp leaves it out")
            else:
                found.append(f"tensor {name!r} is neither a .lora_a nor a .lora_b")
        if not pairs and not found:
            found.append("it holds no factors")
        for tensor, shapes in pairs.items():
            fault = _pair_fault(tensor, shapes)
            if fault is not None:
                found.append(f"{tensor!r} {fault}")
        return pairs

    def _modules(self, pairs: Shapes, asked: list[str]) -> dict[str, Module]:
        modules: dict[str, Module] = {}
        for tensor, shapes in pairs.items():
            base = tensor.removesuffix(".weight")
            module = self._names.module(base)
            heads = self._heads.of(base, _seen(shapes["lora_b"], _axes(tensor))[-2], asked)
            if module is None:
                asked.append(f"{tensor!r} has no module in the table of {self._architecture!r}; name it with the option names=FILE")
            elif not asked:
                read = self._module(tensor, base, shapes, heads)
                if self._split and "experts" in read[0]:
                    modules |= {self._names.expert(base, place): part for place, part in enumerate(_unstacked(*read))}
                else:
                    modules[module] = read
        return modules

    def _module(self, tensor: str, base: str, shapes: dict[str, tuple[int, ...]], heads: int | None) -> Module:
        names = {parameter: f"{tensor}.{half}" for parameter, half in zip(("lora_A", "lora_B"), HALVES, strict=True)}
        a, b = (
            self._reader.array(name).reshape(_seen(shapes[half], _axes(tensor))) for name, half in zip(names.values(), HALVES, strict=True)
        )
        if a.ndim == 3:
            facts: dict[str, Any] = {"layer_type": "linear", "shape": [a.shape[2], b.shape[1]], "rank": a.shape[1], "experts": len(a)}
            lora_a, lora_b = (np.ascontiguousarray(factor.swapaxes(1, 2)) for factor in (a, b))
        else:
            table = base == EMBEDDING
            facts, lora_a, lora_b = from_torch(a.T if table else a, b, table=table)
        if heads is not None:
            lora_b = deinterleave(lora_b, heads)
        marked = {parameter: "bfloat16" for parameter, name in names.items() if self._reader.entries[name].type == "BF16"}
        record = {"method": "lora", **facts, **self._scale(facts["rank"]), **({"dtypes": marked} if marked else {})}
        return record, {"lora_A": lora_a, "lora_B": lora_b}

    def _scale(self, rank: int) -> dict[str, Any]:
        """llama.cpp applies alpha / rank, each tensor's own, and 1 where alpha is 0 or missing."""
        if not self._alpha:
            return {"alpha": float(rank), "scaling": 1.0, "alpha_source": f"{ALPHA} is 0 or missing, which llama.cpp takes as scaling 1"}
        return {"alpha": self._alpha, "scaling": self._alpha / rank, "alpha_source": ALPHA}

    def _state(self, modules: dict[str, Module]) -> AdapterState:
        types = Counter(entry.type for entry in self._reader.entries.values())
        self.notes.append(f"architecture {self._architecture!r}, alpha {self._alpha:g}; tensors: {', '.join(sorted(types))}")
        if "Q8_0" in types:
            self.notes.append(f"{types['Q8_0']} tensors in 8-bit blocks (Q8_0) became float32, exactly")
        if self._heads.used:
            heads = ", ".join(f"{name} {count}" for name, count in sorted(self._heads.used.items()))
            self.notes.append(f"rows of q and k are put back into the order of transformers ({heads})")
        if TOKENS in self._reader.fields:
            self.notes.append(f"an activated LoRA: llama.cpp applies it only after the tokens of {TOKENS!r}, kept as metadata")
        tensors = {f"{module}.{parameter}": array for module, (_, held) in modules.items() for parameter, array in held.items()}
        metadata = to_strings(self._reader.fields, self.notes)
        counts = {f"{self._architecture}.{HEAD_KEYS[name]}": str(count) for name, count in self._heads.used.items()}
        return AdapterState("default", {}, tensors, {module: record for module, (record, _) in modules.items()}, metadata=metadata | counts)


def _facts(fields: Mapping[str, Value], found: list[str]) -> tuple[str, float]:
    """Architecture and alpha. What the metadata must say and does not goes to `found`."""
    for key, want in ((TYPE, "adapter"), (KIND, "lora")):
        field = fields.get(key)
        if field is None or field.value != want:
            found.append(f"{key} must be {want!r}, found {_shown(field)}")
    architecture, alpha = fields.get(ARCHITECTURE), fields.get(ALPHA, Value("f32", 0.0))
    if architecture is None or architecture.kind != "string" or not architecture.value.isprintable() or not architecture.value:
        found.append(f"{ARCHITECTURE} must name the base's architecture, found {_shown(architecture)}")
    if alpha.kind != "f32" or not np.isfinite(alpha.value):
        found.append(f"{ALPHA} must be a finite f32, found {_shown(alpha)}")
        return "", 0.0
    return str(architecture.value) if architecture is not None else "", float(alpha.value)


def _shown(field: Value | None) -> str:
    return "nothing" if field is None else f"{field.kind} {str(field.value)[:60]!r}"


def _pair_fault(tensor: str, shapes: dict[str, tuple[int, ...]]) -> str | None:
    """What is wrong with a pair, or None."""
    if lacks := [half for half in HALVES if half not in shapes]:
        return f"lacks its {lacks[0]}"
    axes = _axes(tensor)
    a, b = (_seen(shapes[half], axes) for half in HALVES)
    base = tensor.removesuffix(".weight")
    if base == tensor:
        return "must be the name of a weight, ending in '.weight'"
    if len(a) != axes or len(b) != axes:
        return f"must have factors of {axes} axes, found {a} and {b}"
    if not all((*a, *b)):
        return f"has factors of size 0: {a} and {b}"
    rank = a[-1] if base == EMBEDDING else a[-2]
    if rank != b[-1]:
        return f"has factors that disagree about the rank: {a} has {rank}, {b} has {b[-1]}"
    if a[:-2] != b[:-2]:
        return f"has factors that disagree about the number of experts: {a} and {b}"
    return None


def _axes(tensor: str) -> int:
    """How many axes the factors of a tensor have: that of experts has one more."""
    return 3 if tensor.removesuffix(".weight").endswith(STACK) else 2


def _seen(shape: tuple[int, ...], axes: int) -> tuple[int, ...]:
    """A shape with that many axes: to ggml, which counts from the other end, leading axes of 1 may be there or not."""
    sizes = list(shape)
    while len(sizes) > axes and sizes[0] == 1:
        del sizes[0]
    return (*[1] * (axes - len(sizes)), *sizes)


def _unstacked(record: dict[str, Any], held: dict[str, np.ndarray]) -> list[Module]:
    """The experts of a stack one by one."""
    single = {key: value for key, value in record.items() if key != "experts"}
    return [(dict(single), {name: array[place] for name, array in held.items()}) for place in range(record["experts"])]


def kind_fault(found: Mapping[str, str]) -> str | None:
    """Why a GGUF file with these first strings is no adapter, or None if it may be one."""
    kind = found.get(TYPE, "adapter")
    return None if kind == "adapter" else f"its {TYPE} is {kind!r}: it holds a whole {kind}, not an adapter ({choices(sorted(found)[:3])})"
