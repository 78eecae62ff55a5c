"""Adapters as sd-scripts (networks.lora) and LyCORIS keep them: one safetensors file, `lora_unet_..._to_q.lora_down.weight` and more."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from loratk import hookimpl
from loratk.errors import FormatError, faults
from loratk.exchange import FEATURES, AdapterFormat, AdapterState, Base, Option, Reading, Request
from loratk.exchange.plain import outputs_of, window_of
from loratk.exchange.tensors import TensorFile, marks, read_tensors, tensor_names
from loratk.io import write_safetensors

from . import fused
from .convert import as_lora, rank_limit
from .header import metadata
from .names import prefix_of, resolve
from .reading import header, read_module
from .table import grouped, split_key
from .writing import pack, unheld

SOURCES = {"lora_A": ("lora_down",), "lora_B": ("lora_up",), "magnitude": ("dora_scale",), "bias": ("diff_b", "b_norm"),
           "weight": ("diff", "w_norm", "weight")}  # fmt: skip
SURE = ("lora_down", "lora_up", "hada_w1_a", "lokr_w1", "lokr_w1_a", "lokr_w2", "oft_blocks", "a1", "bias_indices")
"""Parameters that tell a file of this family whatever the names of its modules; the others need a prefix."""


class KohyaFormat(AdapterFormat):
    """The files of kohya-ss sd-scripts and LyCORIS."""

    name = "kohya"
    title = "kohya / LyCORIS safetensors"
    suffixes = (".safetensors",)
    carries: ClassVar[Mapping[str, str]] = dict.fromkeys(FEATURES, "yes") | {
        "names": "with '_' for '.', or through the base", "several": "no", "rslora": "folded into alpha", "conv": "without groups",
        "embedding": "no", "einsum": "no", "experts": "no", "bias": "as diff_b", "full": "as differences",
        "methods": "LoHa, LoKr, LoCon, GLoRA, IA3, OFT, BOFT", "fingerprint": "no",
    }  # fmt: skip
    options: ClassVar[Mapping[str, Option]] = {
        "factor": Option("reading: LoHa, LoKr, LoCon with a core and GLoRA as LoRA: yes (exact), or the largest rank", "no"),
        "split": Option("reading: fused q-k-v projections as a module for each part (yes)", "no"),
        "prefix": Option("writing: what names begin with, such as lora_unet; by default from the names, else lycoris"),
    }

    def detect(self, path: Path) -> str | None:
        """A tensor that only this family has, or one with a prefix of it."""
        held = tensor_names(path)
        for key in held[0] if held else ():
            split = split_key(key)
            if key.startswith("base_model.") or split is None or split[1] in ("alpha", "scalar"):
                continue
            if split[1] in SURE or ("." not in split[0] and prefix_of(split[0])):
                return f"its tensors are such as {key!r}"
        return None

    def adapters(self, path: Path) -> list[str]:
        """One, without a name."""
        return ["default"]

    def read(self, path: Path, request: Request) -> Reading:
        """The adapter; LoRA and LoCon as LoRA, DoRA of outputs as DoRA, the rest under its own method with its tensors as they are."""
        limit, split = rank_limit(self.option(request, "factor")), _flag(self.option(request, "split"))
        file = read_tensors(path)
        names, strange = grouped(file.arrays)
        found = [f"tensor {key!r} is none that loratk knows in such a file" for key in strange]
        notes: list[str] = []
        modules = _modules(file, names, found, notes)
        if found or not modules:
            raise FormatError(faults(f"'{path}' is not a sound {self.title} file:", found or ["it has no adapter"]))
        paths, said = resolve(modules, request.base)
        modules = {paths[name][0]: module for name, module in modules.items()}
        if len(modules) < len(paths):
            raise FormatError(f"two modules of '{path}' are one in the base '{request.base and request.base.path}'")
        for path_, prefix in paths.values():
            if prefix:
                modules[path_][0]["prefix"] = prefix
        if request.base is not None:
            _fit_base(modules, [new for old, (new, _) in paths.items() if new != old], request.base, path)
        notes = [*said, *notes, *_unsure(modules, request.base)]
        if limit is not None:
            modules, said = as_lora(modules, limit, request.base)
            notes += said
        modules, said = _unfused(modules, split)
        tensors = {f"{name}.{key}": array for name, (_, held) in modules.items() for key, array in held.items()}
        state = AdapterState("default", {}, tensors, {name: record for name, (record, _) in modules.items()}, metadata=file.metadata)
        return Reading([state], [*notes, *said])

    def unheld(self, state: AdapterState) -> list[str]:
        """Methods that LyCORIS does not have, and IA3 as PEFT has it."""
        return unheld(state)

    def write(self, path: Path, states: Sequence[AdapterState], request: Request) -> list[str]:
        """The adapter, with an alpha for each module in its dtype, ss_network_* and the sshs_* hashes."""
        packed = pack(states[0], self.option(request, "prefix"))
        own = {key: text for key, text in states[0].metadata.items() if key != "format"}
        write_safetensors(path, packed.arrays, metadata(packed, own), packed.bfloat16)
        return packed.notes


def _modules(file: TensorFile, names: Mapping[str, Mapping[str, str]], found: list[str], notes: list[str]) -> dict[str, Any]:
    modules = {}
    said = header(file.metadata)
    for name, keys in names.items():
        if (module := read_module(name, {key: file.arrays[full] for key, full in keys.items()}, said, found, notes)) is not None:
            record, held = module
            sources = {key: next((keys[old] for old in SOURCES.get(key, (key,)) if old in keys), "") for key in held}
            modules[name] = record | marks(file, sources), held
    return modules


def _fit_base(modules: Mapping[str, Any], known: Sequence[str], base: Base, path: Path) -> None:
    """Learn windows and shapes from the base where the file does not tell them. Raises FormatError where they disagree."""
    found = []
    for name in known:
        record, shape = modules[name][0], base.shape(name)
        size = math.prod(shape)
        if "shape" in record and math.prod(record["shape"]) != size:
            found.append(f"{name!r} is for a weight of shape {record['shape']}, the base has {shape}")
        elif len(shape) > 2 and "shape" in record and "kernel" not in record and record["method"] != "diff":
            window = window_of(shape, record["shape"][1], getattr(base, "order", ""))
            record |= {"kernel": list(window), "layer_type": f"conv{len(window)}d"}
        elif "shape" not in record and len(shape) > 1 and record["method"] != "diff":
            k = outputs_of(shape, getattr(base, "order", ""))
            record["shape"] = [size // k, k]
    if found:
        raise FormatError(faults(f"'{path}' does not fit the base '{base.path}':", found))


def _unsure(modules: Mapping[str, Any], base: Base | None) -> list[str]:
    """A note where a convolution would look like a linear layer."""
    flat = [name for name, (record, _) in modules.items() if record["method"] in ("loha", "lokr") and "kernel" not in record]
    if base is not None or not flat:
        return []
    said = "do not tell whether they are of convolutions, and are taken as linear; --base tells"
    return [f"{len(flat)} modules (LoHa, LoKr), such as {flat[0]!r}, {said}"]


def _unfused(modules: Mapping[str, Any], split: bool) -> tuple[dict[str, Any], list[str]]:
    fit = [name for name, (record, _) in modules.items() if fused.is_fused(name, record)]
    if not fit:
        return dict(modules), []
    if not split:
        return dict(modules), [
            f"{len(fit)} modules, such as {fit[0]!r}, are fused q-k-v projections; split=yes makes a module of each part"
        ]
    made: dict[str, Any] = {}
    for name, module in modules.items():
        made |= fused.split(name, *module) if name in fit else {name: module}
    return made, [f"{len(fit)} fused q-k-v projections, such as {fit[0]!r}, were split into q, k and v"]


def _flag(value: object) -> bool:
    return str(value).lower() in ("yes", "true", "1", "on")


@hookimpl
def register_formats() -> list[AdapterFormat]:
    """kohya."""
    return [KohyaFormat()]
