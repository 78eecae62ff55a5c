"""What a PEFT file holds beside factors: whole modules, biases, saved embeddings, rows of single tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from loratk.errors import FormatError, UnknownNameError
from loratk.exchange.base import EMBEDDINGS

from .keys import BASE, TOKENS, Key, unwrapped
from .targets import ends

if TYPE_CHECKING:
    from .reading import Adapter

HEADS = {*EMBEDDINGS, "embed_in", "embed_out", "lm_head", "output", "shared"}
"""Last parts of paths whose weights PEFT saves beside the adapter where a vocabulary was resized, without a word in the config."""


def read_tokens(adapter: Adapter, keys: Mapping[Key, str]) -> None:
    """Rows of embeddings that were trained: the new rows, with their numbers in the record."""
    indices = adapter.config.get("trainable_token_indices", {})
    used = set()
    for key, source in keys.items():
        table = key.module.rpartition(".")[0]
        entry = next((name for name in indices if ends(table, name)), None) if isinstance(indices, dict) else None
        tokens = indices[entry] if entry is not None else indices if isinstance(indices, list) else None
        used.add(entry)
        shape = adapter.file.shape(source)
        if tokens is None:
            adapter.unexpected(source, f"trainable_token_indices of {adapter.config.where} does not name {table!r}")
        elif len(shape) != 2 or shape[0] != len(tokens):
            adapter.found.append(f"tensor {source!r} must have a row for each of {len(tokens)} tokens, found {shape}")
        else:
            adapter.modules[key.module] = {"method": "trainable_tokens", "orientation": "torch", "tokens": tokens}
            adapter.add(key.module, TOKENS, adapter.file.array(source), source)
    if isinstance(indices, dict):
        for name in sorted(name for name in set(indices) - used if not adapter.request.may_miss(name)):
            adapter.found.append(f"trainable_token_indices names {name!r}, for which there is no tensor")
    elif indices and not keys:
        adapter.missing(f"{TOKENS}", "trainable_token_indices promises it")


def read_plain(adapter: Adapter, keys: Mapping[Key, str], wrapped: list[str]) -> None:
    """Tensors of the base's own names: whole modules, saved embeddings, and biases."""
    config, whole = adapter.config, set()
    saved, mode = config.get("modules_to_save", []), config.get("bias", "none")
    biases: dict[str, str] = {}
    for key, source in keys.items():
        module, inside = unwrapped(key.module), key.module.endswith(f".{BASE}")
        owner = next((name for name in saved if any(ends(part, name) for part in _owners(key.module))), None)
        if owner is not None:
            whole.add(owner)
            _whole(adapter, key.module, key.leaf, source)
        elif key.leaf == "bias" and mode != "none" and (inside or mode == "all"):
            biases[module] = source
        elif key.leaf == "weight" and (module.rpartition(".")[2] in HEADS or (inside and module in wrapped)):
            _embedding(adapter, key.module, module, source)
        else:
            adapter.unexpected(source, "neither the adapter's nor announced by the config (modules_to_save, bias)")
    for name in sorted(name for name in set(saved) - whole if not adapter.request.may_miss(name)):
        adapter.found.append(
            f"modules_to_save names {name!r}, for which there are no tensors; if the model has no such module, allow it to be missing"
        )
    if biases:
        _biases(adapter, biases)


def _owners(module: str) -> Iterator[str]:
    """A module and the modules around it."""
    parts = module.split(".")
    yield from (".".join(parts[:count]) for count in range(len(parts), 0, -1))


def _whole(adapter: Adapter, module: str, parameter: str, source: str) -> None:
    adapter.modules.setdefault(module, {"method": "full", "orientation": "torch"})
    adapter.add(module, parameter, adapter.file.array(source), source)


def _embedding(adapter: Adapter, path: str, module: str, source: str) -> None:
    """A saved embedding, unless the base has the same."""
    array = adapter.file.array(source)
    try:
        mine = None if adapter.request.base is None else adapter.request.base.weight(module)
    except (FormatError, UnknownNameError):
        mine = None
    if mine is not None and any(mine.shape == other.shape and np.array_equal(mine, other) for other in (array, array.T)):
        adapter.notes.append(f"{source!r} was left out: the base has the same numbers")
        return
    adapter.notes.append(f"{source!r} replaces the base's weight: PEFT saved it beside the adapter")
    _whole(adapter, path, "weight", source)


def _biases(adapter: Adapter, biases: Mapping[str, str]) -> None:
    """Biases, which PEFT keeps whole: as changes where the base is known, else as what replaces the base's."""
    base, whole = adapter.request.base, []
    for module, source in biases.items():
        array = adapter.file.array(source)
        try:
            mine = None if base is None else base.bias(module)
        except (FormatError, UnknownNameError):
            mine = None
        if mine is not None and mine.shape != array.shape:
            adapter.found.append(f"tensor {source!r} must have the shape of the base's bias, {mine.shape}, found {array.shape}")
        elif mine is not None and adapter.modules.get(module, {}).get("method") != "full":
            adapter.modules.setdefault(module, {"method": "bias"})
            adapter.tensors[f"{module}.bias"] = (array.astype(np.float64) - mine).astype(np.result_type(array.dtype, np.float32))
        else:
            whole.append(module)
            _whole(adapter, f"{module}.{BASE}" if module in adapter.modules else module, "bias", source)
    if whole:
        adapter.notes.append(
            f"PEFT keeps biases whole, so those of {len(whole)} modules replace the base's; give the base to have their changes"
        )
