"""Fused q-k-v projections: one module of a file as one for each of its column blocks, and back. Exact both ways."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np

from loratk.errors import ConfigError, faults

Module = tuple[dict[str, Any], dict[str, np.ndarray]]
PARTS = ("q", "k", "v")


def is_fused(name: str, record: Mapping[str, Any]) -> bool:
    """Whether a module is a q-k-v projection by its name, with a LoRA or DoRA whose outputs are three equal blocks."""
    return name.endswith(("_qkv", ".qkv")) and record["method"] in ("lora", "dora") and record["shape"][1] % 3 == 0


def split(name: str, record: Mapping[str, Any], held: Mapping[str, np.ndarray]) -> dict[str, Module]:
    """The modules `name.q`, `.k` and `.v`: each has its columns of lora_B, and of the rank what its columns use."""
    width = record["shape"][1] // 3
    made: dict[str, Module] = {}
    for place, part in enumerate(PARTS):
        columns = slice(place * width, (place + 1) * width)
        b = held["lora_B"][:, columns]
        used = b.any(axis=1)
        used = used if used.any() else np.ones_like(used)
        rank = int(used.sum())
        new = dict(record) | {"shape": [record["shape"][0], width], "columns": [columns.start, columns.stop], "rank": rank}
        if rank != record["rank"]:
            new["alpha"] = record["scaling"] * rank
        factors = {"lora_A": np.ascontiguousarray(held["lora_A"][:, used]), "lora_B": np.ascontiguousarray(b[used])}
        made[f"{name}.{part}"] = new, factors | {key: held[key][columns] for key in ("magnitude", "bias") if key in held}
    return made


def joined(modules: Mapping[str, Module]) -> dict[str, Module]:
    """The modules with those that are blocks of one projection put together, where they first stand; missing ones but the last are zero.

    The rank is that of one block where all have the same lora_A, else the sum; scalings that differ go into lora_B. Raises ConfigError
    with every fault.
    """
    made: dict[str, Module | None] = {}
    blocks: dict[str, dict[str, Module]] = {}
    for name, (record, held) in modules.items():
        owner = name.rpartition(".")[0] if "columns" in record else name
        made.setdefault(owner, None if "columns" in record else (record, held))
        if "columns" in record:
            blocks.setdefault(owner, {})[name] = record, held
    found = [f"{owner!r}: {fault}" for owner, parts in blocks.items() for fault in _faults(parts)]
    found += [f"{owner!r} is a module, and its columns are modules too" for owner in blocks if made[owner] is not None]
    if found:
        raise ConfigError(faults("blocks of fused projections cannot be put together:", found))
    return {name: module if module is not None else _join(list(blocks[name].values())) for name, module in made.items()}


def _faults(parts: Mapping[str, Module]) -> list[str]:
    if any(not _is_block(record) for record, _ in parts.values()):
        return ["its blocks must have columns [start, stop] that are as wide as their shape"]
    ordered = sorted(parts, key=lambda name: parts[name][0]["columns"])
    records = [parts[name][0] for name in ordered]
    if len({(record["method"], record.get("layer_type"), record["shape"][0]) for record in records}) > 1:
        return ["its blocks have several methods, layer types or numbers of inputs"]
    if any(record["method"] != "lora" or "bias" in parts[name][1] for name, record in zip(ordered, records, strict=True)):
        return ["only LoRA without bias can be put together"]
    if any(one["columns"][1] > two["columns"][0] for one, two in pairwise(records)):
        return ["its blocks overlap"]
    if ordered[-1].rpartition(".")[2] != PARTS[-1]:
        return [f"its last block, {ordered[-1]!r}, is not '{PARTS[-1]}', so its width is not known"]
    return []


def _is_block(record: Mapping[str, Any]) -> bool:
    columns = record["columns"]
    whole = isinstance(columns, list) and len(columns) == 2 and all(type(place) is int and place >= 0 for place in columns)
    return whole and columns[1] - columns[0] == record["shape"][1]


def _join(parts: list[Module]) -> Module:
    parts = sorted(parts, key=lambda part: part[0]["columns"])
    records, helds = [record for record, _ in parts], [held for _, held in parts]
    first = helds[0]["lora_A"]
    width = records[-1]["columns"][1]
    shared = all(np.array_equal(first, held["lora_A"]) for held in helds)
    scalings = [record["scaling"] for record in records]
    scaling = scalings[0] if len(set(scalings)) == 1 else 1.0
    rank = first.shape[1] if shared else sum(record["rank"] for record in records)
    dtype = np.result_type(*(held["lora_B"].dtype for held in helds), *([] if len(set(scalings)) == 1 else [np.float32]))
    b, at = np.zeros((rank, width), dtype), 0
    for record, held in parts:
        own = held["lora_B"] if len(set(scalings)) == 1 else (held["lora_B"].astype(np.float64) * record["scaling"]).astype(dtype)
        b[at : at + len(own), slice(*record["columns"])] = own
        at += 0 if shared else len(own)
    new = {key: value for key, value in records[0].items() if key not in ("columns", "dtypes")}
    new |= {"shape": [records[0]["shape"][0], width], "rank": rank, "alpha": scaling * rank, "scaling": scaling}
    marks = [record.get("dtypes", {}) for record in records]
    kept = {key for key in ("lora_A", "lora_B") if all(key in mark for mark in marks) and (key == "lora_A" or len(set(scalings)) == 1)}
    new |= {"dtypes": dict.fromkeys(sorted(kept), "bfloat16")} if kept else {}
    return new, {"lora_A": first if shared else np.hstack([held["lora_A"] for held in helds]), "lora_B": b}
