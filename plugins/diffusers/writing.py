"""A state as the tensors and the config of a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from loratk.errors import ConfigError, FormatError, faults
from loratk.exchange import AdapterState
from loratk.exchange.tensors import marked
from loratk.exchange.torch_layout import magnitude_to_torch, to_torch

from .config import build
from .keys import COMPONENTS

ENDS = {"lora_A": "lora_A.weight", "lora_B": "lora_B.weight", "magnitude": "lora_magnitude_vector", "lora_bias": "lora_B.bias"}
KOHYA = {"lora_te": "text_encoder", "lora_te1": "text_encoder", "lora_te2": "text_encoder_2", "lora_te3": "text_encoder_3"}
"""Components that the prefix in a record tells, which a module's name had before a base gave it its path."""

Held = Mapping[str, np.ndarray]


@dataclass
class Packed:
    """The tensors of a file, which of them go out as bfloat16, the config in the header, and what there is to say."""

    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    bfloat16: set[str] = field(default_factory=set)
    config: str = ""
    notes: list[str] = field(default_factory=list)


def pack(state: AdapterState, component: str | None) -> Packed:
    """The tensors of a state. Raises ConfigError with everything that such a file cannot say."""
    if component is not None and component not in COMPONENTS:
        raise ConfigError(f"the option component must be one of {', '.join(COMPONENTS)}, found {component!r}")
    packed, found = Packed(), []
    placed: dict[str, dict[str, tuple[dict[str, Any], Held]]] = {}
    for module, held in state.parameters().items():
        record = state.modules[module]
        part, path = _place(module, record, component)
        if fault := _fault(record, held, part, path):
            found.append(f"module {module!r}: {fault}")
        elif path in placed.setdefault(part, {}):
            found.append(f"module {module!r}: another one is '{part}.{path}' too")
        else:
            placed[part][path] = record, held
    dora = {part: any("magnitude" in held for _, held in modules.values()) for part, modules in placed.items()}
    bias = {part: any("lora_bias" in held for _, held in modules.values()) for part, modules in placed.items()}
    for part, modules in placed.items():
        plain = [path for path, (_, held) in modules.items() if dora[part] and "magnitude" not in held]
        found += [f"module '{part}.{path}' has no DoRA magnitude, which others of its component have" for path in plain]
        for path, (record, held) in modules.items():
            try:
                _pack_module(packed, f"{part}.{path}", record, held, bias[part])
            except FormatError as error:
                found.append(f"module '{part}.{path}': {error}")
    if found:
        raise ConfigError(faults(f"such a file cannot hold the adapter {state.name!r} as it is:", found))
    packed.config = build({part: {path: record for path, (record, _) in held.items()} for part, held in placed.items()}, dora, bias)
    return packed


def _place(module: str, record: Mapping[str, Any], component: str | None) -> tuple[str, str]:
    """The component of a module and its path there; ("", path) where none is known."""
    head, _, rest = module.partition(".")
    if head in COMPONENTS and rest:
        return head, rest
    return component or KOHYA.get(record.get("prefix", ""), ""), module


def _fault(record: Mapping[str, Any], held: Held, component: str, path: str) -> str:
    if strange := sorted(set(held) - set(ENDS)):
        return f"its {', '.join(map(repr, strange))} has no place"
    if "columns" in record:
        return "it is a block of a fused projection"
    if path.startswith(("lora_unet_", "lora_te", "lycoris_")) and "." not in path:
        return "its name is one of kohya's files, not a path; read it with the base (--base) or rename it"
    if not component:
        return f"its path begins with no component ({', '.join(COMPONENTS[:6])}, ...); the option component gives one"
    return ""


def _pack_module(packed: Packed, name: str, record: Mapping[str, Any], held: Held, bias: bool) -> None:
    a, b = to_torch(record, held["lora_A"], held["lora_B"])
    tensors = {"lora_A": a, "lora_B": b}
    if "magnitude" in held:
        tensors["magnitude"] = magnitude_to_torch(record, held["magnitude"])
    if "lora_bias" in held or bias:  # one config has it for all modules of a component
        tensors["lora_bias"] = held.get("lora_bias", np.zeros(len(b), b.dtype))
    names = {key: f"{name}.{ENDS[key]}" for key in tensors}
    packed.arrays |= {names[key]: array for key, array in tensors.items()}
    packed.bfloat16 |= marked(record, names)
    if "lora_bias" in tensors and "lora_bias" not in held and "lora_B" in record.get("dtypes", {}):
        packed.bfloat16.add(names["lora_bias"])
