"""A state as the two files of a PEFT adapter: the tensors under PEFT's names, and a config under which PEFT makes the same update."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from loratk.errors import FormatError, UnknownNameError, choices
from loratk.exchange import AdapterState, Base
from loratk.exchange.others import KNOWN
from loratk.exchange.torch_layout import magnitude_to_torch, to_torch
from loratk.io import atomic_file, write_safetensors

from . import others
from .config import METHODS
from .fields import FACTORS, Plan, fields
from .fused import joined
from .groups import MARK, to_peft
from .keys import BASE, TOKENS, spell


def plan(state: AdapterState, base: Base | None, options: Mapping[str, Any]) -> Plan:
    """How to write a state. What cannot be expressed is among `found`."""
    made = Plan(state, base)
    made.state = state = joined(state, base, made.found, made.notes)
    held = state.parameters()
    method = _method(made)
    paths = _paths(state)
    for module, parameters in held.items():
        record = state.modules[module]
        try:
            if record["method"] in FACTORS:
                _factors(made, module, paths[module], record, parameters)
            elif record["method"] == "full":
                for name, array in parameters.items():
                    made.add(spell(paths[module], "", name), array, module, name)
            elif record["method"] == "trainable_tokens":
                made.add(spell(module, TOKENS), parameters[TOKENS], module, TOKENS)
            elif record["method"] == "bias":
                _bias(made, module, paths[module], record, parameters)
            elif record["method"].upper() in METHODS:
                for name, array in others.write(record, module, parameters).items():
                    made.add(name, array, module, name.rpartition(".")[2])
            elif record["method"] == "diff":
                made.found.append(f"module {module!r}: PEFT replaces whole modules, and this is the change of one")
            else:
                bake = "; --bake makes LoRA of it" if record["method"] in KNOWN else ""
                made.found.append(f"module {module!r}: its method {record['method']!r} is none of PEFT's that loratk writes{bake}")
        except (FormatError, ValueError, KeyError) as error:
            made.found.append(f"module {module!r}: {error}")
    made.config = fields(made, method, paths, options)
    return made


def write(made: Plan, tensors: Path, config: Path) -> None:
    """The two files. The tensors' header has PEFT's format, and what of fingerprint and metadata no field of the config takes."""
    state = made.state
    header = {"loratk.format" if key == "format" else key: text for key, text in state.metadata.items() if not key.startswith("peft.")}
    header |= {"format": "pt"}
    header |= {"loratk.fingerprint": state.fingerprint} if state.fingerprint else {}
    write_safetensors(tensors, made.tensors, header, made.bfloat16)
    with atomic_file(config) as file:
        file.write(json.dumps(made.config, indent=2, sort_keys=True, allow_nan=False).encode())


def name_faults(name: str) -> Iterator[str]:
    """What keeps an adapter's name from being that of a folder."""
    if name and (not name.isprintable() or name.startswith(".") or set(name) & set('/\\:*?"<>|') or len(name.encode()) > 200):
        yield f"{name[:80]!r} cannot be the name of a folder; rename the adapter"


def _method(made: Plan) -> str:
    """PEFT's name of the one method of all modules; what does not go together is a fault."""
    methods = {record["method"] for record in made.state.modules.values()} - {"full", "diff", "bias", "trainable_tokens"}
    if len(methods) > 1:
        examples = [
            next(module for module, record in made.state.modules.items() if record["method"] == method) for method in sorted(methods)
        ]
        made.found.append(
            f"PEFT has one method for all modules, found {choices(methods)}, as in {choices(examples)}; "
            "--select some of them, or --bake those that loratk knows"
        )
    method = next(iter(sorted(methods)), "lora")
    return "LORA" if method in FACTORS else method.upper()


def _paths(state: AdapterState) -> dict[str, str]:
    """The path of each module with PEFT's wrappers in it.

    A layer within another layer that has factors is the output of a MultiheadAttention; parameters of one module, which are stacks of
    experts, lie in each other, the first in the middle.
    """
    factors = {module for module, record in state.modules.items() if record["method"] in FACTORS}
    stacks: dict[str, list[str]] = {}
    for module in factors_in_order(state):
        if "experts" in state.modules[module]:
            stacks.setdefault(module.rpartition(".")[0], []).append(module)
    paths = {}
    for module in state.modules:
        parts = module.split(".")
        owner = next((place for place in range(1, len(parts)) if ".".join(parts[:place]) in factors and parts[place] != BASE), None)
        paths[module] = ".".join([*parts[:owner], BASE, *parts[owner:]]) if owner else module
    for root, modules in stacks.items():
        for depth, module in enumerate(reversed(modules)):
            paths[module] = root + f".{BASE}" * depth
    return paths


def factors_in_order(state: AdapterState) -> list[str]:
    """The modules with factors, in the state's order."""
    return [module for module, record in state.modules.items() if record["method"] in FACTORS]


def _factors(made: Plan, module: str, path: str, record: Mapping[str, Any], held: Mapping[str, np.ndarray]) -> None:
    if unknown := set(held) - {"lora_A", "lora_B", "magnitude", "lora_bias", "bias"}:
        raise ValueError(f"PEFT has no place for {choices(unknown)}")
    if "experts" in record:
        if extra := set(held) - {"lora_A", "lora_B"}:
            raise ValueError(f"PEFT's stacks of experts have no {choices(extra)}")
        e, d, r = held["lora_A"].shape
        a, b = held["lora_A"].transpose(0, 2, 1).reshape(e * r, d), held["lora_B"].transpose(2, 1, 0).reshape(-1, r * e)
    else:
        a, b = held["lora_A"], held["lora_B"]
        if "groups" in record or MARK in record:
            a, b = to_peft(record, a, b)
        a, b = to_torch(record, a, b)
    table = record.get("layer_type") == "embedding"
    halves = (("lora_embedding_A", ""), ("lora_embedding_B", "")) if table else (("lora_A", "weight"), ("lora_B", "weight"))
    made.add(spell(path, *halves[0]), a, module, "lora_A")
    made.add(spell(path, *halves[1]), b, module, "lora_B")
    if "magnitude" in held:
        made.add(spell(path, "lora_magnitude_vector"), magnitude_to_torch(record, held["magnitude"]), module, "magnitude")
    if "magnitude" in held and ("groups" in record or MARK in record):
        raise ValueError("PEFT's DoRA is not made for grouped convolutions")
    if "lora_bias" in held and (table or "magnitude" in held):
        raise ValueError(f"PEFT has no lora_bias for {'embeddings' if table else 'DoRA'}")
    if "lora_bias" in held:
        made.add(spell(path, "lora_B", "bias"), held["lora_bias"], module, "lora_bias")
    if "bias" in held:
        _bias(made, module, f"{path}.{BASE}", record, held)


def _bias(made: Plan, module: str, path: str, record: Mapping[str, Any], held: Mapping[str, np.ndarray]) -> None:
    """The whole bias, which PEFT keeps in place of its change."""
    if made.base is None:
        raise ValueError("PEFT keeps biases whole, and this is the change of one; give the base (--base)")
    try:
        mine = made.base.bias(module)
    except UnknownNameError:
        mine = None
    if mine is None or mine.shape != held["bias"].shape:
        raise ValueError(f"the base has no bias {held['bias'].shape} for it" + (f", but {mine.shape}" if mine is not None else ""))
    made.add(spell(path, "", "bias"), (mine + held["bias"].astype(np.float64)).astype(held["bias"].dtype), module, "bias")
