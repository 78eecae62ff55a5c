"""Blocks of a fused projection as one pair of factors for the whole of it, which is what PEFT can hold."""

from __future__ import annotations

from typing import Any

import numpy as np

from loratk.errors import FormatError, UnknownNameError
from loratk.exchange import AdapterState, Base
from loratk.exchange.transform import rebuilt

Module = tuple[dict[str, Any], dict[str, np.ndarray]]


def joined(state: AdapterState, base: Base | None, found: list[str], notes: list[str]) -> AdapterState:
    """A state in which the blocks (`columns`) of each projection are one module; what cannot be joined goes to `found`.

    Side by side, the lora_A of all blocks are that of the whole, and their lora_B lie in its rows and columns, zeros beside them: exact,
    at a rank that is the sum of theirs. Where their scalings differ, these are multiplied into lora_B.
    """
    modules: dict[str, Module] = {module: (dict(state.modules[module]), held) for module, held in state.parameters().items()}
    blocks: dict[str, list[Module]] = {}
    for module in [module for module, (record, _) in modules.items() if "columns" in record]:
        blocks.setdefault(module.rpartition(".")[0], []).append(modules.pop(module))
    if not blocks:
        return state
    for module, parts in blocks.items():
        try:
            record, held = _join(sorted(parts, key=lambda part: part[0]["columns"]), _width(module, base))
        except (FormatError, UnknownNameError) as error:
            found.append(f"module {module!r}, a fused projection with adapters on blocks of it: {error}")
            continue
        modules[module] = record, held | modules.get(module, ({}, {}))[1]  # it may have a bias
        notes.append(f"the adapters on {len(parts)} blocks of {module!r} became one of rank {record['rank']}, exactly")
    return rebuilt(state, modules)


def _width(module: str, base: Base | None) -> int:
    if base is None:
        raise FormatError("how many columns it has is not known; give the base (--base)")
    return base.weight(module).shape[1]


def _join(parts: list[Module], k: int) -> Module:
    if any("lora_A" not in held for _, held in parts):
        raise FormatError("PEFT has no such method for a block of columns; --bake makes LoRA of it")
    same = len({record["scaling"] for record, _ in parts}) == 1
    scaling = float(parts[0][0]["scaling"]) if same else 1.0
    rank = sum(record["rank"] for record, _ in parts)
    d = parts[0][1]["lora_A"].shape[0]
    methods = {record["method"] for record, _ in parts}
    dtype = np.result_type(*(held["lora_B"] for _, held in parts))
    lora_b = np.zeros((rank, k), dtype)
    row = at = 0
    for record, held in parts:
        start, stop = record["columns"]
        if start < at or stop > k or held["lora_A"].shape[0] != d or len(methods) > 1 or set(held) - {"lora_A", "lora_B", "magnitude"}:
            raise FormatError("its blocks do not go together: they overlap, or have other methods or parameters")
        lora_b[row : row + record["rank"], start:stop] = held["lora_B"] if same else held["lora_B"] * np.float64(record["scaling"])
        row, at = row + record["rank"], stop
    new: dict[str, Any] = {"method": methods.pop(), "layer_type": "linear", "shape": [d, k], "rank": rank, "alpha": scaling * rank}
    new |= {"scaling": scaling, "alpha_source": "its blocks"}
    held = {"lora_A": np.hstack([part["lora_A"] for _, part in parts]), "lora_B": lora_b}
    if new["method"] == "dora":
        if sum(record["columns"][1] - record["columns"][0] for record, _ in parts) != k:
            raise FormatError("DoRA on a part of its columns leaves the others as they are, which PEFT's cannot")
        held["magnitude"] = np.concatenate([part["magnitude"] for _, part in parts])
    if all(record.get("dtypes", {}).get(name) == "bfloat16" for record, _ in parts for name in held) and same:
        new["dtypes"] = dict.fromkeys(held, "bfloat16")
    return new, held
