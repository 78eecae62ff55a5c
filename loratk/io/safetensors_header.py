"""The header of a safetensors file: where each tensor lies, to and from its JSON, with every check of the reference and some more.

    file   = length of the header (u64, little-endian) | header | tensors
    header = {"<name>": {"dtype": "F32", "shape": [2, 3], "data_offsets": [begin, end]}, ..., "__metadata__": {"<key>": "<value>"}}

Offsets count from the header's end. Sorted by them, the tensors follow each other without a gap up to the end of the file.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import FormatError, faults

LIMIT = 100_000_000
"""Bytes of the longest header that the reference reads."""
METADATA = "__metadata__"
MAX_AXES = 64

_BITS = {
    "BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "C64": 64,
    "F64": 64, "I64": 64, "U64": 64,
}  # fmt: skip
_ORDER = {dtype: place for place, dtype in enumerate(_BITS)}

NUMPY = {
    "BOOL": np.dtype("?"), "U8": np.dtype("u1"), "I8": np.dtype("i1"), "I16": np.dtype("<i2"), "U16": np.dtype("<u2"),
    "F16": np.dtype("<f2"), "I32": np.dtype("<i4"), "U32": np.dtype("<u4"), "F32": np.dtype("<f4"), "F64": np.dtype("<f8"),
    "I64": np.dtype("<i8"), "U64": np.dtype("<u8"),
}  # fmt: skip
"""The dtypes that NumPy has too; of the others loratk reads BF16."""
DTYPE_OF = {dtype.newbyteorder("="): name for name, dtype in NUMPY.items()}


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies: its first byte and the one after its last, counted from the header's end."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def size_of(dtype: str, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor."""
    return math.prod(shape) * _BITS[dtype] // 8


def build_header(tensors: Mapping[str, tuple[str, tuple[int, ...]]], metadata: Mapping[str, str]) -> tuple[bytes, dict[str, Entry]]:
    """Length and header, and where each tensor (dtype, shape) goes: by falling dtype, then by name, as the reference does."""
    record: dict[str, Any] = {METADATA: dict(sorted(metadata.items()))} if metadata else {}
    entries: dict[str, Entry] = {}
    begin = 0
    for name, (dtype, shape) in sorted(tensors.items(), key=lambda item: (-_ORDER[item[1][0]], item[0])):
        entries[name] = Entry(dtype, shape, begin, end := begin + size_of(dtype, shape))
        record[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, entries


def parse_header(text: bytes, room: int, path: object) -> tuple[dict[str, str], dict[str, Entry]]:
    """Metadata, and the tensors by their place in the file, of a header that `room` bytes follow. Raises FormatError with every fault."""
    found: list[str] = []
    record: Any = {}
    try:
        record = json.loads(text.decode(), object_pairs_hook=lambda pairs: _unique(pairs, found), parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        found.append(f"its header is no JSON in UTF-8: {error if isinstance(error, ValueError) else 'nested too deeply'}")
    metadata = record.pop(METADATA, None)
    metadata = {} if metadata is None else metadata  # MLX writes null where it has none, and the reference reads that
    if not isinstance(metadata, dict) or not all(is_text(text) for pair in metadata.items() for text in pair):
        found.append(f"its {METADATA} must hold text only, found {_shown(metadata)}")
    entries: dict[str, Entry] = {}
    for name, value in record.items():
        fault = _entry_fault(value) if is_text(name) else "has a name that is no text"
        if fault is None:
            entries[name] = Entry(value["dtype"], tuple(value["shape"]), *value["data_offsets"])
        else:
            found.append(f"tensor {_shown(name)} {fault}")
    entries = dict(sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)))
    if not found:
        found += _gaps(entries, room)
    if found:
        raise FormatError(faults(f"'{path}' is not a sound safetensors file; get a new copy of it:", found))
    return metadata, entries


def _entry_fault(value: Any) -> str | None:
    """What is wrong with a tensor's record alone, or None."""
    if not isinstance(value, dict) or (lacks := [key for key in ("dtype", "shape", "data_offsets") if key not in value]):
        return f"lacks {', '.join(lacks)}" if isinstance(value, dict) else f"must have a record, found {_shown(value)}"
    dtype, shape, offsets = (value[key] for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str) or dtype not in _BITS:
        return f"has the unknown dtype {_shown(dtype)}"
    if not isinstance(shape, list) or not all(_is_size(size) for size in shape) or len(shape) > MAX_AXES:
        return f"must have a shape of at most {MAX_AXES} sizes, found {_shown(shape)}"
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_is_size(place) for place in offsets):
        return f"must have two offsets, found {_shown(offsets)}"
    bits = math.prod(size for size in shape if size) * _BITS[dtype]
    if bits >= 1 << 63:
        return f"has the shape {_shown(shape)}, more than any file holds"
    bits = bits if all(shape) else 0
    if bits % 8:
        return f"of dtype {dtype} and shape {_shown(shape)} does not end on a whole byte"
    if offsets[1] - offsets[0] != bits // 8:
        return f"of dtype {dtype} and shape {_shown(shape)} has {bits // 8} bytes, but lies at {offsets}"
    return None


def _gaps(entries: Mapping[str, Entry], room: int) -> Iterator[str]:
    """Where tensors overlap, leave bytes out, or end elsewhere than the file."""
    at, before = 0, "the header"
    for name, entry in entries.items():
        if entry.begin != at:
            what = f"overlaps {before}" if entry.begin < at else f"leaves {entry.begin - at} bytes without an owner after {before}"
            yield f"tensor {_shown(name)}, at [{entry.begin}, {entry.end}], {what}"
        at, before = max(at, entry.end), f"tensor {_shown(name)}"
    if at > room:
        yield f"its tensors take {at} bytes, but only {room} follow the header: it was cut short"
    elif at < room:
        yield f"{room - at} bytes follow the last tensor"


def _unique(pairs: list[tuple[str, Any]], found: list[str]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) != len(pairs):
        counts = Counter(key for key, _ in pairs)
        found += [f"its header has the key {_shown(key)} twice" for key, count in counts.items() if count > 1]
    return record


def is_text(value: object) -> bool:
    """Whether it is a str that UTF-8 can hold."""
    return isinstance(value, str) and not any("\ud800" <= character <= "\udfff" for character in value)


def _refuse(text: str) -> None:
    raise ValueError(f"{text} is not JSON")


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
