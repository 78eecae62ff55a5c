"""Which layer a number is: by the user's map, a family's table, what loratk wrote beside the factors, or by position alone."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from loratk.errors import ConfigError, UnknownNameError, choices

from .beside import Beside
from .families import FAMILIES, Family
from .family_fit import by_family
from .layers import Layer

POSITION = re.compile("layer_(0|[1-9][0-9]{0,8})")


def find_family(name: Any) -> Family | None:
    """The family of that name. Raises UnknownNameError."""
    if name is None:
        return None
    if name not in FAMILIES:
        raise UnknownNameError(f"no family named {name!r}; there are {choices(FAMILIES)}. For other models give a map (docs/keras.md)")
    return FAMILIES[name]


def name_layers(
    kernels: Mapping[int, tuple[int, ...]], mapped: Mapping[int, Layer], said: Beside, options: Mapping[str, Any]
) -> tuple[dict[int, Layer], list[str]]:
    """What is known of each layer, and how: by the map, else a family, else what loratk wrote beside, else by position.

    Raises ConfigError where a map or a family is given that does not name every layer of the file.
    """
    named, style = options["family"], options["names"]
    family = find_family(named)
    rest = {index: shape for index, shape in kernels.items() if index not in mapped}
    layers = {index: layer for index, layer in mapped.items() if index in kernels}
    notes = [f"{len(layers)} layers named by the map"] if layers else []
    if family is not None and rest:
        layers |= by_family(named, family, rest, style)
        notes.append(f"{len(rest)} layers named by the table of the family {named!r} ({style}), which fits their shapes")
        rest = {}
    known = {index: said.records[index] for index in rest if index in said.records}
    layers |= {index: Layer(str(record["name"]), record.get("layer_type"), record.get("equation")) for index, record in known.items()}
    if known:
        notes.append(f"{len(known)} layers named as loratk wrote them beside")
    position = [index for index in rest if index not in known]
    if mapped and position:
        raise ConfigError(f"the map of layer numbers does not name {numbers(position)} of the file, which holds {numbers(kernels)}")
    layers |= {index: Layer(f"layer_{index}") for index in position}
    if position:
        notes.append(
            f"{len(position)} layers are named by their number in the model, such as 'layer_{position[0]}', for a .lora.h5 holds no names; "
            "the options family and map give them"
        )
    names = Counter(layer.name for layer in layers.values())
    if twice := sorted(str(name) for name, count in names.items() if count > 1):
        raise ConfigError(f"several layers of the file are named {choices(twice)}; correct the map of layer numbers")
    return dict(sorted(layers.items())), notes


def indexes(
    modules: Iterable[tuple[str, Mapping[str, Any]]], mapped: Mapping[int, Layer], family: Family | None
) -> tuple[dict[str, int], list[str]]:
    """The layer number of each module (path and record), and those that have none or share one, a line each.

    By the map, the family's table, the number that the record kept (`keras_layer`), or a name "layer_8".
    """
    by_name = {layer.name: index for index, layer in mapped.items()}
    placed: dict[str, int] = {}
    found: list[str] = []
    for module, record in modules:
        kept, position = record.get("keras_layer"), POSITION.fullmatch(module)
        index = by_name.get(module, family.index(module) if family else None)
        if index is None and not mapped and family is None:
            index = kept if isinstance(kept, int) and 0 <= kept < 10**9 else int(position[1]) if position else None
        if index is None:
            found.append(f"module {module!r} has no layer number")
        else:
            placed[module] = index
    times = Counter(placed.values())
    shared = {index: [module for module, place in placed.items() if place == index] for index, count in times.items() if count > 1}
    return placed, found + [f"the modules {choices(names)} are all layer {index}" for index, names in shared.items()]


def numbers(indexes: Iterable[int]) -> str:
    """Layer numbers for a message: "layers 1, 2 and 6 more"."""
    listed = sorted(indexes)
    return f"layers {', '.join(map(str, listed[:8]))}{f' and {len(listed) - 8} more' if len(listed) > 8 else ''}"
