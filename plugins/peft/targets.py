"""target_modules: which modules PEFT would wrap under a config, and the shortest list that means just the modules that are saved."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from loratk.errors import choices

from .config import PeftConfig

ALL_LINEAR = "all-linear"


def ends(name: str, suffix: str) -> bool:
    """Whether a dotted name is a suffix, or ends with it after a dot."""
    return name == suffix or name.endswith(f".{suffix}")


def target_faults(config: PeftConfig, modules: Collection[str], may_miss: Callable[[str], bool]) -> Iterator[str]:
    """Where target_modules and the modules that have tensors disagree. `may_miss` tells which entries may match none."""
    targets = config.get("target_modules")
    if targets is None or (isinstance(targets, str) and targets.lower() == ALL_LINEAR):
        return
    try:
        missed = [module for module in modules if not _wraps(config, module)]
    except ValueError as error:
        yield f"a pattern of {config.where} cannot be followed: {error}"
        return
    if missed:
        shown = choices(missed[:5]) + (f" and {len(missed) - 5} more" if len(missed) > 5 else "")
        yield f"target_modules does not mean {shown}, so PEFT would ignore their tensors"
    if isinstance(targets, str):
        if not modules and not may_miss(targets):
            yield f"target_modules {targets!r} means no module that has tensors"
        return
    suffixes = {module[place:] for module in modules for place in _starts(module)}
    for target in sorted(target for target in set(targets) - suffixes if not may_miss(target)):
        yield f"target_modules names {target!r}, for which there are no tensors; if the model has no such module, allow it to be missing"


def _starts(name: str) -> list[int]:
    return [0, *(place + 1 for place, character in enumerate(name) if character == ".")]


def _wraps(config: PeftConfig, module: str) -> bool:
    """PEFT's `check_target_module_exists`."""
    match, exclude, targets = config.matcher.matches, config.get("exclude_modules", []), config.get("target_modules")
    if match(exclude, module) if isinstance(exclude, str) else any(ends(module, name) for name in exclude):
        return False
    if isinstance(targets, str):
        return match(targets, module)
    if module in targets:
        return True
    if not any(module[place:] in targets for place in _starts(module)):
        return False
    wanted = config.get("layers_to_transform", [])
    if wanted == []:
        return True
    number = _layer(config, module)
    return number is not None and number in ([wanted] if isinstance(wanted, int) else wanted)


def _layer(config: PeftConfig, module: str) -> int | None:
    """The number of a module's layer: the first part of digits after a part that layers_pattern means, any if it is empty."""
    patterns = config.get("layers_pattern", [])
    patterns = [patterns] if isinstance(patterns, str) and patterns else patterns
    parts = module.split(".")
    for place in range(1, len(parts) - 1):
        before = ".".join(parts[:place])
        if not (parts[place].isdecimal() and parts[place].isascii()) or len(parts[place]) > 18:
            continue
        if (not patterns and place > 1) or any(config.matcher.ends(pattern, before) for pattern in patterns):
            return int(parts[place])
    return None


def shortest(wanted: Sequence[str], others: Collection[str]) -> list[str] | None:
    """The fewest parts of each wanted path, counted from its end, that mean none of the others; None if a whole path means one.

    A number alone is none: there may be a module of that number anywhere.
    """
    taken = {other[place:] for other in others for place in _starts(other)}
    found: dict[str, None] = {}
    for path in wanted:
        ends_of = [path[place:] for place in reversed(_starts(path))]
        suffix = next((end for end in ends_of if end not in taken and (end == path or not end.isdecimal())), None)
        if suffix is None:
            return None
        found[suffix] = None
    return [suffix for suffix in found if not any(other != suffix and ends(suffix, other) for other in found)]


def target_modules(modules: Sequence[str], base: Collection[str] | None) -> str | list[str]:
    """A target_modules that means just these modules among those of a base.

    Without one, the last part of a path serves where the modules are those of all layers from the first on, else whole paths. Where even
    these would mean others, it is a regular expression.
    """
    if base is None:
        return sorted(_complete(modules) or modules)
    around = {name[: place - 1] for name in base for place in _starts(name)[1:]}  # PEFT asks about what holds modules too
    found = shortest(modules, (set(base) | around) - set(modules))
    return sorted(found) if found is not None else "|".join(map(re.escape, sorted(modules)))


def _complete(modules: Sequence[str]) -> list[str] | None:
    """The last parts of paths, if each module of a layer is there in all layers, from the first on; else None."""
    seen: dict[tuple[str, ...], dict[tuple[str, ...], set[int]]] = {}
    for module in modules:
        parts = tuple(module.split("."))
        if parts[-1].isdecimal():
            return None
        place = next((place for place, part in enumerate(parts) if part.isdecimal()), None)
        if place is not None:
            seen.setdefault(parts[:place], {}).setdefault(parts[place + 1 :], set()).add(int(parts[place]))
    for blocks in seen.values():
        every = set().union(*blocks.values())
        if every != set(range(len(every))) or any(layers != every for layers in blocks.values()):
            return None
    return sorted({module.rpartition(".")[2] for module in modules})


def patterns(values: Mapping[str, Any], usual: Any) -> dict[str, Any]:
    """rank_pattern or alpha_pattern for modules that have other values than the usual one: by the shortest end that means no others."""
    found: dict[str, Any] = {}
    for value in sorted({value for value in values.values() if value != usual}):
        mine = [module for module, held in values.items() if held == value]
        suffixes = shortest(mine, [module for module, held in values.items() if held != value])
        keys = [re.escape(suffix) for suffix in suffixes] if suffixes is not None else [f"^{re.escape(module)}" for module in mine]
        found |= dict.fromkeys(keys, value)
    return found
