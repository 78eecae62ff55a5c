"""What loratk writes into a `.lora.h5` beside the factors, under /loratk: names, alphas, config. keras-hub passes over it.

/loratk             attributes format_version "1", name, config and metadata (JSON objects), fingerprint, version
/loratk/layers/<n>  attributes name (dotted path of the module), alpha, scaling, ...: the module's record, as docs/format.md has it
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from loratk.exchange import AdapterState
from loratk.io import strict_json
from loratk.io.text import escape, from_text, to_text, unescape

from .layers import INDEX, layer_faults

VERSION = "1"
_TOLD_BY_FACTORS = {"rank", "shape", "dtypes", "keras_layer", "name"}


@dataclass
class Beside:
    """What a file says of its adapter. `records` are by layer number, each with a `name`."""

    name: str = "default"
    config: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    fingerprint: str = ""
    version: str = ""
    records: dict[int, dict[str, Any]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)


def packed(state: AdapterState, modules: Iterable[tuple[int, str, Mapping[str, Any]]]) -> dict[str, str]:
    """The strings of a file for a state and its modules: layer number, path and record."""
    strings = {
        "loratk/format_version": VERSION,
        "loratk/name": state.name,
        "loratk/config": strict_json.dumps(state.config),
        "loratk/metadata": strict_json.dumps(state.metadata),
        "loratk/fingerprint": state.fingerprint,
        "loratk/version": state.version,
    }
    for index, module, record in modules:
        strings[f"loratk/layers/{index}/name"] = module
        for key, value in record.items():
            if key not in _TOLD_BY_FACTORS:
                strings[f"loratk/layers/{index}/{escape(key)}"] = to_text(value)
    return strings


def unpacked(strings: Mapping[str, str]) -> Beside | None:
    """What the strings of a file say, None where loratk did not write it."""
    if "loratk/format_version" not in strings:
        return None
    said = Beside(
        strings.get("loratk/name", "default"), fingerprint=strings.get("loratk/fingerprint", ""), version=strings.get("loratk/version", "")
    )
    if strings["loratk/format_version"] != VERSION:
        said.faults.append(
            f"what loratk wrote beside is of version {strings['loratk/format_version']!r}, this loratk reads {VERSION!r}; update it"
        )
        return said
    said.config, said.metadata = (_object(strings, key, said.faults) for key in ("config", "metadata"))
    for full, text in strings.items():
        parts = full.split("/")
        if parts[:2] == ["loratk", "layers"] and len(parts) == 4:
            if INDEX.fullmatch(parts[2]):
                key = unescape(parts[3])
                said.records.setdefault(int(parts[2]), {})[key] = text if key == "name" else from_text(text)
            else:
                said.faults.append(f"{'/'.join(parts[:3])!r} is no layer number")
    names: dict[str, int] = {}
    for index, record in sorted(said.records.items()):
        said.faults += [f"layer {index}, as loratk wrote it: {fault}" for fault in (*layer_faults(record), *_number_faults(record))]
        if (first := names.setdefault(str(record.get("name")), index)) != index:
            said.faults.append(f"the layers {first} and {index} have one name, {record.get('name')!r}")
    return said


def _number_faults(record: Mapping[str, Any]) -> Iterable[str]:
    for key in ("alpha", "scaling"):
        value = record.get(key)
        if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) <= sys.float_info.max:
            yield f"{key} must be a finite number, found {value!r}"
    groups = record.get("groups", 1)
    if not isinstance(groups, int) or isinstance(groups, bool) or groups < 1:
        yield f"groups must be a whole number from 1 up, found {groups!r}"


def _object(strings: Mapping[str, str], key: str, found: list[str]) -> dict[str, Any]:
    try:
        value = strict_json.loads(strings.get(f"loratk/{key}", "{}"))
    except ValueError as error:
        found.append(f"its {key}, as loratk wrote it, is no JSON: {error}")
        return {}
    if not isinstance(value, dict):
        found.append(f"its {key}, as loratk wrote it, must be a JSON object, found {value!r}"[:300])
        return {}
    return value
