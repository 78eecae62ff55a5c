"""A state as the tensors and the config of an mlx-lm adapter, which has one rank and one scale."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from loratk.errors import ConfigError, choices, faults
from loratk.exchange import AdapterState, Base, portable
from loratk.exchange.tensors import marked, name_faults
from loratk.io.text import from_text

from .blocks import choose, place
from .config import MlxConfig
from .reading import FACTORS

SUFFIXES = {parameter: last for last, parameter in FACTORS.items()}
Record = Mapping[str, Any]


@dataclass
class Packed:
    """What goes to the disk."""

    config: MlxConfig
    arrays: dict[str, np.ndarray]
    bfloat16: set[str]
    header: dict[str, str]
    notes: list[str] = field(default_factory=list)


def pack(state: AdapterState, base: Base | None, options: Mapping[str, Any]) -> Packed:
    """The tensors and the config. Raises ConfigError with everything that mlx-lm cannot express."""
    found = list(_faults(state))
    if found:
        raise ConfigError(faults(f"adapter {state.name!r} cannot be an adapter of mlx-lm:", found))
    notes: list[str] = []
    whole = any(record["method"] == "full" for record in state.modules.values())
    fitted = state if whole else _alike(state, notes)
    arrays, marks = _tensors(fitted, whole, notes)
    if bad := [name for name, array in arrays.items() if array.dtype.kind == "f" and not np.isfinite(array).all()]:
        raise ConfigError(f"{choices(bad[:4])} hold numbers that float32 does not, after the scaling was multiplied in")
    header = {"format": "mlx"} | {key: text for key, text in state.metadata.items() if not key.startswith("mlx.") and key != "format"}
    return Packed(_config(fitted, whole, base, options, notes), arrays, marks, header, notes)


def _faults(state: AdapterState) -> Iterator[str]:
    whole = {module for module, record in state.modules.items() if record["method"] == "full"}
    if whole and len(whole) < len(state.modules):
        yield f"whole modules ({choices(sorted(whole)[:3])}) beside adapters: mlx-lm has either; choose some with --select"
    dora = {module for module, held in state.parameters().items() if "magnitude" in held}
    plain = {module for module, held in state.parameters().items() if "lora_A" in held} - dora
    if dora and plain:
        some, others = choices(sorted(dora)[:3]), choices(sorted(plain)[:3])
        yield f"some modules have DoRA's magnitudes ({some}), others not ({others}): all or none may"
    for module, held in state.parameters().items():
        yield from (f"module {module!r} {fault}" for fault in _module_faults(state.modules[module], held))
    yield from name_faults([f"{module}.{SUFFIXES.get(key, key)}" for module, held in state.parameters().items() for key in held])


def _module_faults(record: Record, held: Mapping[str, np.ndarray]) -> Iterator[str]:
    if record["method"] == "full":
        if record.get("orientation") != "torch":
            yield "is a whole module whose order of axes is not torch's"
        if large := [key for key, array in held.items() if array.ndim > 2]:
            yield f"has {choices(large)} of more than 2 axes, which mlx orders otherwise than torch"
        return
    if record["method"] not in ("lora", "dora") or not {"lora_A", "lora_B"} <= held.keys() <= {"lora_A", "lora_B", "magnitude"}:
        yield f"must have lora_A and lora_B, with DoRA magnitude, and nothing else, found {record['method']} with {choices(held)}"
    if "magnitude" in held and record.get("layer_type") == "embedding":
        yield "is an embedding under DoRA: mlx-lm has a magnitude for each of its rows, not for each column"
    if "magnitude" in held and "experts" in record:
        yield "is a stack of experts under DoRA, which mlx-lm does not have"
    if "columns" in record:
        yield "is a part of a fused projection, which mlx-lm adapts as a whole"


def _alike(state: AdapterState, notes: list[str]) -> AdapterState:
    """A state with one rank and one scaling."""
    kinds = {(record["rank"], float(record["scaling"])) for record in state.modules.values()}
    if len(kinds) == 1:
        return state
    made = portable(state)
    ranks = sorted({rank for rank, _ in kinds})
    rank = next(iter(made.modules.values()))["rank"]
    filled = f"ranks {', '.join(map(str, ranks))} filled up with zeros to {rank}" if len(ranks) > 1 else f"rank {rank}"
    notes.append(f"mlx-lm has one rank and one scale: {filled}, scale 1, each module's scaling multiplied into lora_b")
    return made


def _tensors(state: AdapterState, whole: bool, notes: list[str]) -> tuple[dict[str, np.ndarray], set[str]]:
    arrays: dict[str, np.ndarray] = {}
    marks: set[str] = set()
    rounded = []
    for module, held in state.parameters().items():
        record = state.modules[module]
        names = {key: f"{module}.{key if whole else SUFFIXES[key]}" for key in held}
        for key, array in held.items():
            turned = "experts" in record and key in ("lora_A", "lora_B")
            stored = np.ascontiguousarray(array.swapaxes(1, 2)) if turned else array
            if stored.dtype == np.float64:
                with np.errstate(over="ignore"):
                    stored = stored.astype(np.float32)
                rounded.append(names[key])
            arrays[names[key]] = stored
        marks |= marked(record, names)
    if rounded:
        notes.append(f"{len(rounded)} tensors were rounded from float64 to float32, the widest that mlx computes with")
    return arrays, marks


def _config(state: AdapterState, whole: bool, base: Base | None, options: Mapping[str, Any], notes: list[str]) -> MlxConfig:
    rest = {key.removeprefix("mlx."): from_text(text) for key, text in state.metadata.items() if key.startswith("mlx.")}
    model = options["model"] or state.metadata.get("mlx.model") or state.metadata.get("peft.base_model_name_or_path")
    rest |= {} if model is None else {"model": model}
    if whole:
        return MlxConfig("full", -1, rest=rest)
    layers, keys, why = choose(state.modules, _count(state, base, options["num_blocks"]))
    notes.append(why)
    dropout = state.config.get("dropout", 0.0)
    record = next(iter(state.modules.values()))
    dora = any(key.endswith(".magnitude") for key in state.tensors)
    return MlxConfig("dora" if dora else "lora", layers, record["rank"], float(record["scaling"]), float(dropout), tuple(keys), rest)


def _count(state: AdapterState, base: Base | None, given: Any) -> int | None:
    """How many blocks the base has, if that is known. Raises ConfigError for a number that cannot be."""
    mine = [where for module in state.modules if (where := place(module)) is not None]
    least = max((where.number for where in mine), default=-1) + 1
    if given is not None:
        count = int(given) if isinstance(given, int) or (isinstance(given, str) and given.isascii() and given.isdecimal()) else 0
        if count < max(least, 1) or isinstance(given, bool):
            raise ConfigError(f"the option num_blocks must be how many blocks the base has, at least {max(least, 1)}, found {given!r}")
        return count
    if base is None or not mine:
        return None
    there = [where.number for module in base.modules() if (where := place(module)) is not None and where.stem == mine[0].stem]
    return max(there) + 1 if there else None
