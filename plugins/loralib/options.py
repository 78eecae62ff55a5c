"""Options that may differ from module to module, as a line of text: `GLOB=VALUE,GLOB=VALUE,VALUE`."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from fnmatch import fnmatchcase
from typing import Any, TypeVar

from loratk.errors import ConfigError, choices, faults

T = TypeVar("T")


def by_module(name: str, value: Any, modules: Collection[str], parse: Callable[[str], T]) -> dict[str, T]:
    """What an option says for each module it speaks of: the value of the first glob that matches, or of the part without a glob.

    A glob means a whole path, or its end after a dot. `value`: text, a dict by glob, one value for all, or None. Raises ConfigError that
    lists each part that cannot be read, and each glob without a match.
    """
    found: dict[str, T] = {}
    wrong = []
    for glob, text in _parts(value):
        matched = [module for module in modules if glob is None or fnmatchcase(module, glob) or fnmatchcase(module, f"*.{glob}")]
        try:
            parsed = parse(text)
        except ValueError as error:
            wrong.append(f"{text!r} {error}")
            continue
        found = dict.fromkeys(matched, parsed) | found
        if not matched:
            wrong.append(f"{glob!r} matches none of {choices(sorted(modules)[:8])}")
    if wrong:
        raise ConfigError(faults(f"the option {name}={value!r} of the format 'loralib' cannot be used:", wrong))
    return found


def globs(name: str, value: Any, names: Collection[str]) -> set[str]:
    """The names that an option means by globs, each a whole name or its end after a dot. Raises ConfigError for one without a match."""
    given = value.split(",") if isinstance(value, str) else list(value or [])
    return set(by_module(name, {glob.strip(): "" for glob in given if glob.strip()}, names, str))


def number(text: str) -> float:
    """Alpha: any finite number."""
    value = _value(float, text)
    if not math.isfinite(value):
        raise ValueError("must be a finite number")
    return value


def switches(text: str) -> tuple[bool, ...]:
    """Which parts of a fused projection have factors: "TFT", "101" or "True/False/True"."""
    marks = text.replace("True", "T").replace("False", "F").replace("1", "T").replace("0", "F").replace("/", "").upper()
    if not marks or set(marks) - {"T", "F"} or "T" not in marks:
        raise ValueError("must have a T or an F for each part of the projection, at least one T, such as TFT")
    return tuple(mark == "T" for mark in marks)


def window(text: str) -> tuple[int, int]:
    """The kernel size of a convolution and its groups: "3", or "3/2" with two groups."""
    size, _, groups = text.partition("/")
    found = _value(int, size), _value(int, groups or "1")
    if min(found) < 1 or max(found) > 1 << 16:
        raise ValueError("must be a kernel size from 1 up, and after a / the groups")
    return found


def _parts(value: Any) -> list[tuple[str | None, str]]:
    if value is None or value == "":
        return []
    if isinstance(value, Mapping):
        return [(str(glob), _text(part)) for glob, part in value.items()]
    if not isinstance(value, str):
        return [(None, _text(value))]
    parts = [part.strip() for part in value.split(",")]
    named = [(glob, text) for part in parts for glob, mark, text in [part.rpartition("=")] if mark]
    return [*named, *((None, part) for part in parts if "=" not in part)]


def _text(value: Any) -> str:
    return "/".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _value(kind: Callable[[str], T], text: str) -> T:
    try:
        return kind(text)
    except ValueError:
        raise ValueError("is no number") from None
