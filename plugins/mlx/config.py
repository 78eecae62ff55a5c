"""adapter_config.json of mlx-lm: what its loader needs of it, checked, and the rest as it is."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from loratk.errors import FormatError, StoreError
from loratk.io import strict_json
from loratk.io.safetensors_header import is_text
from loratk.io.text import to_text

NAME = "adapter_config.json"
TYPES = ("lora", "dora", "full")
LIMIT = 1 << 22
"""Bytes of the longest config that is read."""
_HELD = {"fine_tune_type", "lora_parameters", "num_layers", "lora_layers"}


@dataclass(frozen=True)
class MlxConfig:
    """A config. `num_layers` last blocks are meant, all if it is below 1; `keys` None means every layer in them. `rest`: other fields."""

    fine_tune_type: str = "lora"
    num_layers: int = -1
    rank: int | None = None
    scale: float = 0.0
    dropout: float = 0.0
    keys: tuple[str, ...] | None = None
    rest: Mapping[str, Any] = field(default_factory=dict)

    def text(self) -> str:
        """The file, as mlx-lm lays it out."""
        rest = {key: value for key, value in self.rest.items() if key not in _HELD}
        record: dict[str, Any] = {**rest, "fine_tune_type": self.fine_tune_type, "num_layers": self.num_layers}
        if self.fine_tune_type != "full":
            keys = {} if self.keys is None else {"keys": list(self.keys)}
            record["lora_parameters"] = {"rank": self.rank, "scale": self.scale, "dropout": self.dropout, **keys}
        return json.dumps(record, indent=4, sort_keys=True, allow_nan=False)


def load_json(path: Path, file: BinaryIO) -> Any:
    """What an open JSON file says. Raises StoreError, or FormatError for one that is too long or no JSON."""
    try:
        raw = file.read(min(os.fstat(file.fileno()).st_size, LIMIT) + 1)
    except OSError as error:
        raise StoreError(f"cannot read '{path}': {error.strerror or error}; check the path and its permissions") from error
    if len(raw) > LIMIT:
        raise FormatError(f"'{path}' is longer than {LIMIT} bytes, which no config of mlx-lm is")
    try:
        return strict_json.loads(raw.decode())
    except ValueError as error:
        raise FormatError(f"'{path}' is no JSON: {error}") from error


def looks_like(record: Any) -> str | None:
    """The evidence that a config is mlx-lm's and not PEFT's, which has the same name; or None."""
    if not isinstance(record, Mapping) or "peft_type" in record:
        return None
    return next((f"{NAME} has {key!r}" for key in ("lora_parameters", "fine_tune_type") if key in record), None)


def parse(record: Any, found: list[str], notes: list[str]) -> MlxConfig:
    """A config; every fault goes to `found`."""
    if not isinstance(record, Mapping):
        found.append(f"{NAME} must be a JSON object, found {str(record)[:60]!r}")
        return MlxConfig()
    kind = record.get("fine_tune_type", "lora")
    if kind not in TYPES:
        found.append(f"{NAME}: fine_tune_type must be one of {', '.join(TYPES)}, found {_shown(kind)}")
        kind = "lora"
    rest = {key: value for key, value in record.items() if key not in _HELD}
    found += [f"{NAME}: {_shown(key)} is no text that UTF-8 can hold" for key, value in rest.items() if not is_text(key + to_text(value))]
    if kind == "full":
        return MlxConfig(kind, _layers(record, [], []), rest=rest)
    layers, parameters = _layers(record, found, notes), record.get("lora_parameters")
    if not isinstance(parameters, Mapping):
        found.append(f"{NAME}: lora_parameters must be an object with rank and scale, found {_shown(parameters)}")
        return MlxConfig(kind, layers, rest=rest)
    rank: Any
    scale: Any
    dropout: Any
    rank, scale, dropout, keys = (parameters.get(key) for key in ("rank", "scale", "dropout", "keys"))
    if not _is_whole(rank) or not 1 <= rank < 1 << 31:
        found.append(f"{NAME}: rank must be a whole number from 1 up, found {_shown(rank)}")
        rank = None
    if not _is_number(scale):
        hint = "; mlx-lm's scale is alpha / rank" if scale is None and "alpha" in parameters else ""
        found.append(f"{NAME}: scale must be a finite number, found {_shown(scale)}{hint}")
        scale = 0.0
    elif "alpha" in parameters:
        notes.append("lora_parameters has alpha beside scale; mlx-lm goes by scale alone, and so does loratk")
    if dropout is None:
        notes.append(f"{NAME} has no dropout, without which mlx-lm does not load it; taken as 0")
    elif not _is_number(dropout) or not 0 <= dropout < 1:
        found.append(f"{NAME}: dropout must be a number from 0 to below 1, found {_shown(dropout)}")
        dropout = None
    if keys is not None and not (isinstance(keys, list) and keys and all(isinstance(key, str) and key for key in keys)):
        found.append(f"{NAME}: keys must be a list of module paths, found {_shown(keys)}")
        keys = None
    return MlxConfig(kind, layers, rank, float(scale or 0), float(dropout or 0), None if keys is None else tuple(keys), rest)


def _layers(record: Mapping[str, Any], found: list[str], notes: list[str]) -> int:
    layers: Any = record.get("num_layers")
    if layers is None and "lora_layers" in record:
        notes.append("num_layers is called lora_layers, as mlx-lm did before 2025")
        layers = record["lora_layers"]
    if not _is_whole(layers) or abs(layers) >= 1 << 31:
        found.append(f"{NAME}: num_layers must be a whole number, found {_shown(layers)}")
        return -1
    return int(layers)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300 and math.isfinite(value)


def _shown(value: Any) -> str:
    if value is None:
        return "nothing"
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
