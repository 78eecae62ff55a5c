"""GGUF's metadata as strings, as an AdapterState keeps them, and back: the keys that every tool knows come back with their types."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from loratk.io import strict_json

from .values import Value

ARCHITECTURE, TYPE, KIND, ALPHA = "general.architecture", "general.type", "adapter.type", "adapter.lora.alpha"
TOKENS = "adapter.alora.invocation_tokens"
OWN = (TYPE, KIND, ALPHA, "general.alignment", "general.file_type", "general.quantization_version")
"""Keys that say how the file is made: they are written anew."""
MAX_ITEMS = 4096
"""Items of the longest array that is kept."""
_NUMBERS = ("general.base_model.count", "general.dataset.count")


def to_strings(fields: Mapping[str, Value], notes: list[str]) -> dict[str, str]:
    """The metadata a user may want, without what says how the file is made. Arrays that are too long are left out with a note."""
    found = {}
    for key, field in fields.items():
        if key in OWN:
            continue
        if field.kind == "array" and len(field.value) > MAX_ITEMS:
            notes.append(f"the metadata {key!r} is left out: it has {len(field.value)} items")
            continue
        found[key] = field.value if field.kind == "string" else _text(field.value)
    return found


def _text(value: Any) -> str:
    plain = value.tolist() if isinstance(value, np.ndarray) else value
    try:
        return strict_json.dumps(plain)
    except ValueError:  # NaN, infinite
        return str(plain)


def to_fields(metadata: Mapping[str, str], found: list[str]) -> dict[str, Value]:
    """The strings as values, sorted by key. What cannot be kept goes to `found`."""
    fields = {}
    for key, text in sorted(metadata.items()):
        if key in (ARCHITECTURE, *OWN):
            continue
        found += _faults(key, text)
        if key == TOKENS or key in _NUMBERS or ".attention.head_count" in key:
            value = _typed(key, text)
            if value is None:
                want = "a JSON list of whole numbers" if key == TOKENS else "a whole number"
                found.append(f"the metadata {key!r} must be {want}, found {text!r}")
            else:
                fields[key] = value
        else:
            fields[key] = Value("string", text)
    return fields


def _faults(key: str, text: str) -> Iterator[str]:
    if not key.isprintable() or not key or len(key.encode(errors="replace")) > 0xFFFF:
        yield f"the metadata {key[:60]!r} must have a printable key of at most 65535 bytes"
    elif any("\ud800" <= character <= "\udfff" for character in text):
        yield f"the metadata {key!r} is no text that UTF-8 can hold"


def _typed(key: str, text: str) -> Value | None:
    try:
        value = strict_json.loads(text)
    except ValueError:
        return None
    items = value if isinstance(value, list) else [value]
    if not all(isinstance(item, int) and not isinstance(item, bool) and 0 <= item < 1 << 32 for item in items):
        return None
    if key == TOKENS:
        return Value("array", value, "u32") if isinstance(value, list) else None
    return None if isinstance(value, list) else Value("u32", value)


def whole_number(fields: Mapping[str, Value], key: str) -> int | None:
    """A number from the metadata, if it is one from 1 up."""
    field = fields.get(key)
    return int(field.value) if field is not None and field.kind in ("u32", "i32", "u64") and 0 < field.value < 1 << 20 else None
