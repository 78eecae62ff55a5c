"""The factors of LoRA and DoRA in a PEFT file, on layers of any kind and on the parameters of expert stacks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from loratk.errors import FormatError, choices
from loratk.exchange.torch_layout import from_torch

from .groups import MARK, from_peft
from .keys import BASE, Key, spell, unwrapped
from .targets import ends

if TYPE_CHECKING:
    from loratk.io.safetensors import SafetensorsReader

    from .reading import Adapter

SHARDED = "a sharded tensor (ZeRO-3, FSDP) that was not gathered before it was saved?"
HALVES = {"lora_A": ("lora_A", "weight"), "lora_B": ("lora_B", "weight")}
TABLE = {"lora_A": ("lora_embedding_A", ""), "lora_B": ("lora_embedding_B", "")}


def read(adapter: Adapter, factors: Mapping[Key, str]) -> list[str]:
    """Read the modules with factors, and return the paths under which PEFT's target_modules must mean them."""
    held: dict[str, dict[tuple[str, str], str]] = {}
    for key, source in factors.items():
        held.setdefault(key.module, {})[key.parameter, key.leaf] = source
    names, parameters = _names(adapter, held)
    wrapped = []
    for path, mine in held.items():
        module = names[path]
        owner = parameters.get(path) or path.partition(f".{BASE}.")[0]
        if path not in parameters and f".{BASE}." not in path:
            wrapped.append(path)
        try:
            _module(adapter, path, module, owner, mine, stack=path in parameters)
        except FormatError as error:
            adapter.found.append(f"module {module!r}: {error}")
    return wrapped


def _names(adapter: Adapter, held: Mapping[str, Any]) -> tuple[dict[str, str], dict[str, str]]:
    """What each path with factors is called in a state, and of those that wrap a parameter (target_parameters) its name.

    Where several parameters of a module are wrapped, one wrapper lies in the other, the first of the model's in the middle.
    """
    depths: dict[str, int] = {}
    for path in held:
        root = path
        while root.endswith(f".{BASE}"):
            root = root[: -len(BASE) - 1]
        depths[root] = max(depths.get(root, 0), (len(path) - len(root)) // (len(BASE) + 1))
    names = {path: unwrapped(path) for path in held}
    parameters: dict[str, str] = {}
    used: set[str] = set()
    for root, depth in depths.items():
        targets = [target for target in adapter.config.get("target_parameters", []) if ends(root, target.rpartition(".")[0] or root)]
        used |= set(targets)
        if not targets and depth == 0:
            continue
        paths = [root + f".{BASE}" * (depth - place) for place in range(depth + 1)]
        if len(targets) != len(paths) or any(path not in held for path in paths):
            adapter.found.append(
                f"module {root!r} has factors for {sum(path in held for path in paths)} parameters, and target_parameters of "
                f"{adapter.config.where} names {len(targets)}"
            )
            continue
        for path, target in zip(paths, targets, strict=True):
            parameters[path] = names[path] = f"{root}.{target.rpartition('.')[2]}"
        if depth:
            adapter.notes.append(
                f"the factors of {choices(parameters[path] for path in paths)} go by the order of target_parameters, the first in the "
                "middle; PEFT's is the order in the model, which the file does not hold"
            )
    for target in sorted(set(adapter.config.get("target_parameters", [])) - used):
        if adapter.request.may_miss(target):
            continue
        adapter.found.append(
            f"target_parameters names {target!r}, for which there are no tensors; if the model has none, allow it to be missing"
        )
    return names, parameters


def _module(adapter: Adapter, path: str, module: str, owner: str, mine: dict[tuple[str, str], str], *, stack: bool) -> None:
    """Read one module: its pair of factors, magnitude and lora_bias."""
    table = any(parameter in ("lora_embedding_A", "lora_embedding_B") for parameter, _ in mine)
    kinds, arrays, sources = (TABLE if table else HALVES), {}, {}
    for half, kind in kinds.items():
        source = mine.pop(kind, None)
        if source is None and adapter.missing(spell(path, *kind), "each module has both factors"):
            adapter.notes.append(f"module {module!r} was left out: {half} may be missing, and is")
            return
        if source is not None:
            arrays[half], sources[half] = _numbers(adapter.file, source), source
    if len(arrays) < 2 or any(not array.size for array in arrays.values()):
        adapter.found += [
            f"tensor {sources[half]!r} is empty, {array.shape}: {SHARDED}" for half, array in arrays.items() if not array.size
        ]
        return
    facts, lora_a, lora_b = from_torch(arrays["lora_A"], arrays["lora_B"], table=table)
    if "groups" in facts:
        facts, lora_a, lora_b = from_peft(facts, lora_a, lora_b)
    record = {"method": "lora", "layer_type": facts["layer_type"], "shape": facts["shape"]}
    if stack:
        record |= {"experts": _experts(adapter, owner, facts["rank"])}
        lora_a, lora_b = _stacked(lora_a, lora_b, record["experts"])
    record |= adapter.alpha(owner, lora_b.shape[-2] if stack else facts["rank"])
    record |= {key: facts[key] for key in ("kernel", "groups", MARK) if key in facts}
    if MARK in facts:
        adapter.notes.append(f"module {module!r}: PEFT's update of a grouped convolution takes all channels, so no kernel can take it up")
    adapter.modules[module] = record
    adapter.add(module, "lora_A", lora_a, sources["lora_A"])
    adapter.add(module, "lora_B", lora_b, sources["lora_B"])
    _magnitude(adapter, path, module, mine.pop(("lora_magnitude_vector", ""), None))
    _lora_bias(adapter, path, module, mine.pop(("lora_B", "bias"), None), table or stack)
    for source in mine.values():
        adapter.unexpected(source, "its module is an embedding, and has other factors" if table else "its module has other factors")


def _numbers(file: SafetensorsReader, source: str) -> np.ndarray:
    array = file.array(source)
    if array.dtype.kind != "f":
        raise FormatError(f"tensor {source!r} must hold floating-point numbers, found {file.dtype(source)}")
    return array


def _experts(adapter: Adapter, owner: str, rows: int) -> int:
    """How many experts a pair with this many rows is for: the rank is known from the config alone."""
    rank = adapter.config.rank_of(owner) or 8
    if rows % rank:
        raise FormatError(
            f"its factors have {rows} rows for all experts together, and {adapter.config.where} promises rank {rank} for each"
        )
    return rows // rank


def _stacked(lora_a: np.ndarray, lora_b: np.ndarray, experts: int) -> tuple[np.ndarray, np.ndarray]:
    """(d, e r), expert by expert, and (r e, k), rank by rank -> (e, d, r) and (e, r, k)."""
    a = lora_a.reshape(len(lora_a), experts, -1).transpose(1, 0, 2)
    b = lora_b.reshape(-1, experts, lora_b.shape[1]).transpose(1, 0, 2)
    return np.ascontiguousarray(a), np.ascontiguousarray(b)


def _magnitude(adapter: Adapter, path: str, module: str, source: str | None) -> None:
    record, config = adapter.modules[module], adapter.config
    if source is None:
        if config.get("use_dora", False) and "experts" not in record:
            adapter.missing(spell(path, "lora_magnitude_vector"), f"{config.where} promises DoRA")
        return
    if not config.get("use_dora", False):
        adapter.unexpected(source, f"{config.where} says that use_dora is false")
        return
    magnitude, k = _numbers(adapter.file, source), record["shape"][1]
    want = (1, k, *[1] * len(record["kernel"])) if "kernel" in record else (k,)
    if magnitude.shape not in (want, (k,)):
        raise FormatError(f"tensor {source!r} must have shape {want}, found {magnitude.shape}")
    record["method"] = "dora"
    adapter.add(module, "magnitude", magnitude.reshape(-1), source)


def _lora_bias(adapter: Adapter, path: str, module: str, source: str | None, never: bool) -> None:
    config, k = adapter.config, adapter.modules[module]["shape"][1]
    if source is None:
        if config.get("lora_bias", False) and not never:
            adapter.missing(spell(path, "lora_B", "bias"), f"{config.where} promises lora_bias")
        return
    if not config.get("lora_bias", False):
        adapter.unexpected(source, f"{config.where} says that lora_bias is false")
        return
    bias = _numbers(adapter.file, source)
    if bias.shape != (k,):
        raise FormatError(f"tensor {source!r} must have shape {(k,)}, found {bias.shape}")
    adapter.add(module, "lora_bias", bias, source)
