"""What is known of a layer of the model, and the user's map of layer numbers."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loratk.errors import ConfigError, StoreError, choices, faults
from loratk.io import strict_json

from .einsum import axes_of

INDEX = re.compile("0|[1-9][0-9]{0,8}")
KINDS = ("linear", "einsum", "conv1d", "conv2d", "conv3d")
_KEYS = ("equation", "kernel", "layer_type", "name")


@dataclass(frozen=True)
class Layer:
    """What is known of a layer of the model. kernel: the shape of its whole kernel in Keras."""

    name: str | None = None
    layer_type: str | None = None
    equation: str | None = None
    kernel: tuple[int, ...] | None = None


def read_map(given: Any) -> dict[int, Layer]:
    """A map of layer numbers: a dict, the path of a JSON file with one, or text "8=decoder.q,10=decoder.v".

    The values are names, or objects with `name`, `layer_type`, `equation` and `kernel`. Raises ConfigError with every fault, StoreError.
    """
    if given is None:
        return {}
    entries = dict(given) if isinstance(given, Mapping) else _parsed(str(given))
    found: list[str] = []
    layers = {int(key): _layer(str(key), entry, found) for key, entry in entries.items() if _is_index(str(key), found)}
    named: dict[str, list[int]] = {}
    for index, layer in layers.items():
        named.setdefault(layer.name or "", []).append(index)
    found += [f"the layers {', '.join(map(str, places))} have one name, {name!r}" for name, places in named.items() if name and places[1:]]
    if found:
        raise ConfigError(faults(f"the map of layer numbers ({given if not isinstance(given, Mapping) else 'a dict'}) has faults:", found))
    return layers


def _parsed(text: str) -> dict[str, Any]:
    # not Path.exists, which raises over a text that is too long for a path
    if "=" in text and not os.path.exists(text):
        pairs = [pair.partition("=") for pair in text.split(",")]
        if len({key for key, _, _ in pairs}) != len(pairs):
            raise ConfigError(f"the map of layer numbers {text!r} has a number twice")
        return {key.strip(): name.strip() for key, _, name in pairs}
    try:
        entries = strict_json.loads(Path(text).read_text(encoding="utf-8"))
    except OSError as error:
        raise StoreError(f"cannot read the map of layer numbers '{text}': {error.strerror or error}; check the path") from error
    except ValueError as error:
        raise ConfigError(f"the map of layer numbers '{text}' is no JSON: {error}") from error
    if not isinstance(entries, dict):
        raise ConfigError(f"the map of layer numbers '{text}' must be a JSON object of numbers to names, found a {type(entries).__name__}")
    return entries


def _is_index(key: str, found: list[str]) -> bool:
    if fits := INDEX.fullmatch(key):
        return bool(fits)
    found.append(f"{key!r} is no layer number")
    return False


def _layer(key: str, entry: Any, found: list[str]) -> Layer:
    entry = {"name": entry} if isinstance(entry, str) else entry
    if not isinstance(entry, Mapping):
        found.append(f"layer {key} must be a name or an object with one, found {entry!r}")
        return Layer()
    wrong = [f"it has the unknown key {unknown!r}; known are {choices(_KEYS)}" for unknown in entry if unknown not in _KEYS]
    wrong += layer_faults(entry)
    found += [f"layer {key}: {fault}" for fault in wrong]
    kernel = entry.get("kernel")
    return Layer() if wrong else Layer(entry["name"], entry.get("layer_type"), entry.get("equation"), tuple(kernel) if kernel else None)


def layer_faults(entry: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with the description of a layer: its name, kind, equation and kernel."""
    if (fault := path_fault(entry.get("name"))) is not None:
        yield f"its name {fault}"
    if (kind := entry.get("layer_type")) is not None and kind not in KINDS:
        yield f"layer_type must be one of {choices(KINDS)}, found {kind!r}"
    if (kernel := entry.get("kernel")) is not None and not (
        isinstance(kernel, list | tuple)
        and 1 <= len(kernel) <= 16
        and all(isinstance(size, int) and not isinstance(size, bool) and 0 < size < 1 << 31 for size in kernel)
    ):
        yield f"kernel must be the sizes of its axes, found {kernel!r}"
    if (equation := entry.get("equation")) is not None:
        try:
            axes_of(equation if isinstance(equation, str) else "")
        except ValueError as error:
            yield str(error)


def path_fault(name: Any) -> str | None:
    """What is wrong with the dotted path of a module, or None."""
    if not isinstance(name, str) or not name or len(name) > 1000:
        return f"must be a text of 1 to 1000 characters, found {name!r}"[:200]
    if not name.isprintable():
        return f"must not hold control characters, found {name!r}"
    return f"must not have an empty part, found {name!r}" if "" in name.split(".") else None
