"""`lora_adapter_metadata`: a LoraConfig for each component, as one JSON text whose keys are `<component>.<field>`."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from loratk.io import strict_json

from .keys import COMPONENTS

KEY = "lora_adapter_metadata"
LITERAL = re.compile(r"(\^?)((?:[\w-]|\\?\.)+)\$?")


class Component:
    """What the config says of the modules of one component; what is wrong with it goes to `found`."""

    def __init__(self, name: str, fields: Mapping[str, Any], found: list[str]) -> None:
        self.name, self.found = name, found
        self.rank = self._size("r", fields.get("r"))
        self.alpha = self._number("lora_alpha", fields.get("lora_alpha"))
        self.ranks = {key: self._size(f"rank_pattern {key!r}", value) for key, value in self._patterns(fields, "rank_pattern")}
        self.alphas = {key: self._number(f"alpha_pattern {key!r}", value) for key, value in self._patterns(fields, "alpha_pattern")}
        self.rslora, self.dora, self.bias = (self._flag(key, fields.get(key)) for key in ("use_rslora", "use_dora", "lora_bias"))
        targets = fields.get("target_modules")
        self.targets = [target for target in targets if isinstance(target, str)] if isinstance(targets, list) else []
        self._hits = {name: _literals(held) for name, held in (("rank_pattern", self.ranks), ("alpha_pattern", self.alphas))}
        self._used: set[tuple[str, str]] = set()

    def module_rank(self, path: str) -> int | None:
        """The rank that a module has by the config, None where it says none."""
        hit = self._hit("rank_pattern", path)
        return self.rank if hit is None else self.ranks[hit]

    def module_alpha(self, path: str) -> tuple[float | None, str]:
        """The alpha of a module by the config, and where it is."""
        hit = self._hit("alpha_pattern", path)
        return (self.alpha, "the lora_alpha") if hit is None else (self.alphas[hit], "the alpha_pattern")

    def _hit(self, field: str, path: str) -> str | None:
        """The first key of a pattern that means a module: PEFT reads it as `^(.*\\.)?(key)$`."""
        known = self._hits[field]
        found = [known[end] for end in (f"^{path}", *ends(path)) if end in known]
        if not found:
            return None
        self._used.add((field, min(found)[1]))
        return min(found)[1]

    def finish(self, paths: list[str]) -> None:
        """Report what fits none of the modules."""
        for field, held in (("rank_pattern", self.ranks), ("alpha_pattern", self.alphas)):
            self._say(*(f"{field} {key!r} fits no module" for key in held if (field, key) not in self._used))
        known = {end for path in paths for end in ends(path)}
        self._say(*(f"its target {target!r} is no module of the file" for target in self.targets if target not in known))

    def _patterns(self, fields: Mapping[str, Any], key: str) -> list[tuple[str, Any]]:
        held = fields.get(key) or {}
        if not isinstance(held, dict):
            self._say(f"{key} must be an object, found {held!r}")
            return []
        for pattern, value in held.items():
            if value is None:
                self._say(f"{key} {pattern!r} must be a number, found null")
            if not LITERAL.fullmatch(pattern):
                self._say(f"{key} {pattern!r} is an expression, which loratk does not run; it takes paths and their ends")
        return [(pattern, value) for pattern, value in held.items() if LITERAL.fullmatch(pattern)]

    def _size(self, what: str, value: Any) -> int | None:
        if value is not None and not (type(value) is int and value > 0):
            self._say(f"{what} must be a whole number from 1 up, found {value!r}")
            return None
        return value

    def _number(self, what: str, value: Any) -> float | None:
        if value is not None and not (type(value) in (int, float) and abs(value) < 1e300 and math.isfinite(value)):
            self._say(f"{what} must be a number, found {value!r}")
            return None
        return None if value is None else float(value)

    def _flag(self, what: str, value: Any) -> bool:
        if value is not None and not isinstance(value, bool):
            self._say(f"{what} must be true or false, found {value!r}")
        return value is True

    def _say(self, *lines: str) -> None:
        self.found += [f"{KEY}, {self.name}: {line}" for line in lines]


def ends(path: str) -> list[str]:
    """A path and what is left of it after each dot."""
    parts = path.split(".")
    return [".".join(parts[place:]) for place in range(len(parts))]


def _literals(patterns: Mapping[str, Any]) -> dict[str, tuple[int, str]]:
    """The place and the key of each pattern by the path, or end of a path, that it means; those for a whole path begin with "^"."""
    found: dict[str, tuple[int, str]] = {}
    for place, pattern in enumerate(patterns):
        literal = pattern.removesuffix("$").replace("\\", "")
        found.setdefault(literal, (place, pattern))
    return found


def parse(text: str, found: list[str]) -> dict[str, Component]:
    """The config of each component."""
    try:
        fields = strict_json.loads(text)
    except ValueError as error:
        found.append(f"{KEY} is not JSON: {error}")
        return {}
    if not isinstance(fields, dict):
        found.append(f"{KEY} must be a JSON object")
        return {}
    split: dict[str, dict[str, Any]] = {}
    for key, value in fields.items():
        component, dot, name = key.partition(".")
        if dot and component in COMPONENTS:
            split.setdefault(component, {})[name] = value
        else:
            found.append(f"{KEY} has {key!r}, which begins with no component ({', '.join(COMPONENTS)})")
    return {component: Component(component, held, found) for component, held in split.items()}


def build(modules: Mapping[str, Mapping[str, Mapping[str, Any]]], dora: Mapping[str, bool], bias: Mapping[str, bool]) -> str:
    """The JSON text for the records of each component's modules, by path within it."""
    fields: dict[str, Any] = {}
    for component, records in modules.items():
        rslora, alphas = _alphas(records)
        ranks = {path: int(record["rank"]) for path, record in records.items()}
        rank, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
        inner = {end for path in records for end in ends(path)[1:]}
        names = {path: f"^{path}" if path in inner else path for path in records}
        fields |= {
            f"{component}.r": rank,
            f"{component}.lora_alpha": alpha,
            f"{component}.rank_pattern": {names[path]: value for path, value in ranks.items() if value != rank},
            f"{component}.alpha_pattern": {names[path]: value for path, value in alphas.items() if value != alpha},
            f"{component}.target_modules": sorted(records),
            f"{component}.use_dora": dora[component],
            f"{component}.use_rslora": rslora,
            f"{component}.lora_bias": bias[component],
            f"{component}.bias": "none",
        }
    return json.dumps(fields, indent=2, sort_keys=True, allow_nan=False)


def _alphas(records: Mapping[str, Mapping[str, Any]]) -> tuple[bool, dict[str, float]]:
    """Whether alpha / sqrt(rank) gives all scalings, and each module's alpha; with neither rule the alphas that alpha / rank needs."""
    given = {path: float(record["alpha"]) for path, record in records.items()}
    scalings = {path: float(record["scaling"]) for path, record in records.items()}
    for rslora in (False, True):
        divisors = {path: math.sqrt(record["rank"]) if rslora else record["rank"] for path, record in records.items()}
        if all(math.isclose(scalings[path], given[path] / divisors[path], rel_tol=1e-12) for path in records):
            return rslora, {path: _tidy(value) for path, value in given.items()}
    return False, {path: _tidy(scalings[path] * records[path]["rank"]) for path in records}


def _tidy(value: float) -> float:
    return int(value) if value == int(value) and abs(value) < 1e15 else value
