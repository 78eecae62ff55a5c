"""What adapters need of a format, and whether it carries that: refused by name, or baked into the nearest thing that it does carry."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from math import isclose
from typing import Any

import numpy as np

from ..errors import ConfigError, choices, faults
from .bake import bake_dora
from .format import FEATURES, AdapterFormat, Request
from .joining import joined_states
from .methods_layout import torch_state
from .plain import plain_lora
from .portable import portable
from .state import AdapterState

Record = Mapping[str, Any]
PLAIN_METHODS = ("lora", "dora", "bias", "full", "diff")
CURES = {
    "several": "choose one with --adapter",
    "alpha": "--portable multiplies the scaling into lora_B, exactly",
    "ranks": "--portable fills them up to one rank, exactly",
    "rslora": "--portable multiplies the scaling into lora_B, exactly",
    "dora": "--bake with --base makes the nearest plain LoRA of it",
    "methods": "--bake makes plain LoRA of those that loratk knows",
}
DROPPED = ("metadata", "fingerprint")


def _rslora(record: Record, held: Mapping[str, np.ndarray]) -> bool:
    scaling, alpha, rank = (record.get(key) for key in ("scaling", "alpha", "rank"))
    return rank is not None and scaling is not None and alpha is not None and not isclose(scaling, alpha / rank, rel_tol=1e-6)


NEEDS: dict[str, Callable[[Record, Mapping[str, np.ndarray]], bool]] = {
    "alpha": lambda record, held: record.get("scaling", 1.0) != 1.0,
    "rslora": _rslora,
    "conv": lambda record, held: str(record.get("layer_type", "")).startswith("conv"),
    "embedding": lambda record, held: record.get("layer_type") == "embedding",
    "einsum": lambda record, held: record.get("layer_type") == "einsum",
    "experts": lambda record, held: "experts" in record,
    "dora": lambda record, held: "magnitude" in held,
    "bias": lambda record, held: "bias" in held or "lora_bias" in held,
    "full": lambda record, held: record["method"] in ("full", "diff"),
    "methods": lambda record, held: record["method"] not in PLAIN_METHODS,
    "bfloat16": lambda record, held: "bfloat16" in record.get("dtypes", {}).values(),
}
"""For each feature whether a module with this record and these parameters needs it."""


def needs(states: Sequence[AdapterState]) -> dict[str, list[str]]:
    """The features that states need of a format, each with the modules (or adapters) that need it."""
    found: dict[str, list[str]] = {}
    for state in states:
        for module, held in state.parameters().items():
            for feature, need in NEEDS.items():
                if need(state.modules[module], held):
                    found.setdefault(feature, []).append(f"{state.name}: {module}" if len(states) > 1 else module)
        for feature, there in (("metadata", state.metadata), ("fingerprint", state.fingerprint)):
            if there:
                found.setdefault(feature, []).append(state.name)
        factors = {(record["rank"], record["alpha"], record["scaling"]) for record in state.modules.values() if "scaling" in record}
        if len(factors) > 1:
            found.setdefault("ranks", []).append(state.name)
    if len(states) > 1:
        found["several"] = [state.name for state in states]
    return found


def fit(
    format: AdapterFormat, states: Sequence[AdapterState], request: Request, *, rank: int | None = None, plain: bool = False
) -> tuple[list[AdapterState], list[str]]:
    """States that a format carries, and notes about what had to be changed or is left out.

    What it does not carry is baked if the request says so and that can be done; `rank` is that of what is baked by singular values, as a
    default the module's own; `plain` bakes other methods though the format has them. Everything else raises ConfigError, each feature with
    the modules that need it.
    """
    states, notes = (list(states), []) if format.own else joined_states(states)
    states = states if format.own else [torch_state(state) for state in states]
    if request.bake:
        states, said = plain_lora(states, base=request.base, rank=rank, which=lambda state: _others(format, state, plain))
        notes += said
        if "dora" in _lacks(format, states) and request.base is not None:
            states, said = bake_dora(states, request.base, rank)
            notes += said
        if {"alpha", "ranks", "rslora"} & set(_lacks(format, states)):
            states = [portable(state) for state in states]
            notes.append("one rank in all modules, and the scaling in lora_B: exact but for rounding")
    refused = list(_refusals(format, needs(states)))
    if refused:
        raise ConfigError(faults(f"the format {format.name!r} ({format.title}) cannot hold all of it:", refused))
    return states, notes + list(_dropped(format, needs(states)))


def _lacks(format: AdapterFormat, states: Sequence[AdapterState]) -> list[str]:
    """The features that states need and a format does not have."""
    return [feature for feature in needs(states) if format.carries.get(feature) == "no"]


def _others(format: AdapterFormat, state: AdapterState, plain: bool) -> list[str]:
    """The modules of other methods that are to be LoRA: all, or those that the format cannot write as they are."""
    if plain or format.carries.get("methods") == "no":
        return [module for module, record in state.modules.items() if record["method"] not in PLAIN_METHODS]
    return format.unheld(state)


def _refusals(format: AdapterFormat, found: Mapping[str, list[str]]) -> Iterator[str]:
    for feature, where in found.items():
        if format.carries.get(feature) == "no" and feature not in (*DROPPED, "bfloat16"):
            cure = f"; {CURES[feature]}" if feature in CURES else ""
            listed = f"{choices(where[:4])}{f' and {len(where) - 4} more' if len(where) > 4 else ''}"
            yield f"{FEATURES[feature]} ({listed}){cure}"


def _dropped(format: AdapterFormat, found: Mapping[str, list[str]]) -> Iterator[str]:
    for feature in DROPPED:
        if feature in found and format.carries.get(feature) == "no":
            yield f"{FEATURES[feature]} is left out: {format.title} has no place for it"
    if "bfloat16" in found and format.carries.get("bfloat16") == "no":
        yield f"bfloat16 becomes float32, exactly: {format.title} has no bfloat16"
