"""What two checkpoints of one model have in common, module by module, and how each module is to be kept: told by names and shapes alone."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ..errors import ConfigError, choices, faults
from ..exchange.base import EMBEDDINGS, Checkpoint
from ..io.lazy import LazyArrays
from ..lora.targets import matches, pattern_faults
from .ranks import Rule

KERAS = re.compile(r"(.+)/vars/(\d+)")


@dataclass
class Planned:
    """One module: its arrays in the files by parameter, and whether it is kept as factors, as a stack of factors, or whole."""

    arrays: dict[str, str] = field(default_factory=dict)
    kind: str = "whole"
    rule: Rule = field(default_factory=Rule)
    new: bool = False  # in the tuned checkpoint only
    table: bool = False  # a look-up table, input first in every framework


@dataclass(frozen=True)
class Wanted:
    """Which modules to look at, and how to keep them; patterns as in `loratk.lora.targets`, none for include means all."""

    include: Sequence[str] = ()
    exclude: Sequence[str] = ()
    full: Sequence[str] = ()
    rules: Mapping[str, Rule] = field(default_factory=dict)
    embeddings: str = "full"
    tables: Sequence[str] = ()


def plan(base: Checkpoint, tuned: Checkpoint, wanted: Wanted, default: Rule) -> tuple[dict[str, Planned], list[str]]:
    """How each module is kept, and notes on what is left out by include and exclude.

    Weights are factors, but of embeddings, which usual names or `tables` tell (unless `embeddings` is "lora"), and what `full` matches;
    arrays of three axes that are no `weight` are stacks of experts; all else is whole. Raises ConfigError that lists what is in one
    checkpoint only, shapes that differ, patterns without effect, and names that no module has.
    """
    old, new = base.arrays(), tuned.arrays()
    found = [fault for pattern in _patterns(wanted) for fault in pattern_faults("patterns", pattern)]
    if found:
        raise ConfigError(faults("These patterns cannot be used:", found))
    homes = {name: _home(name, new if name in new else old) for name in sorted({*old, *new})}
    modules = list(dict.fromkeys(module for module, _ in homes.values()))
    found += [f"{pattern!r} matches no module" for pattern in _patterns(wanted) if not any(matches(pattern, module) for module in modules)]
    planned: dict[str, Planned] = {}
    left: set[str] = set()
    for name, (module, parameter) in homes.items():
        if (wanted.include and not _any(wanted.include, module)) or _any(wanted.exclude, module):
            left.add(module)
            continue
        whole = _any(wanted.full, module)
        if fault := _fault(name, parameter, old, new, whole):
            found.append(fault)
            continue
        entry = planned.setdefault(module, Planned(rule=next((r for p, r in wanted.rules.items() if matches(p, module)), default)))
        entry.arrays[parameter] = name
        entry.new |= name not in old
        shape, dtype = new.info(name)
        if dtype.kind == "f" and len(shape) > 1 and parameter in ("weight", "") and not whole:
            entry.table = len(shape) == 2 and (module.rpartition(".")[2] in EMBEDDINGS or _any(wanted.tables, module))
            entry.kind = "experts" if not parameter else "whole" if entry.table and wanted.embeddings == "full" else "factors"
    found += (
        [f"{pattern!r} decides about no module that is kept as factors" for pattern in _idle(wanted.rules, planned)] if not found else []
    )
    if found:
        raise ConfigError(faults(f"an adapter cannot be extracted from '{base.path}' and '{tuned.path}':", found))
    return planned, [f"{len(left)} modules were not looked at, as include and exclude say, such as {min(left)!r}"] if left else []


def _home(name: str, arrays: LazyArrays) -> tuple[str, str]:
    """The module and the parameter that an array is; a stack of experts is a module of its own."""
    if keras := KERAS.fullmatch(name):
        return keras[1].replace("/", "."), {"0": "weight", "1": "bias"}.get(keras[2], f"vars/{keras[2]}")
    module, _, parameter = name.rpartition(".")
    shape = arrays.info(name)[0]
    if parameter != "weight" and len(shape) == 3 and shape[1] != shape[2]:
        return name, ""
    return module or "root", parameter


def _fault(name: str, parameter: str, old: LazyArrays, new: LazyArrays, whole: bool) -> str | None:
    cure = "leave its module out (exclude, --exclude)"
    if "/" in parameter:
        return f"{name!r} is a variable that no adapter has a place for; {cure}"
    if name not in new:
        return f"{name!r} is in the base only; {cure}"
    if name not in old:
        return None if whole else f"{name!r} is in the tuned checkpoint only; {cure}, or keep it whole (full, --full)"
    if old.info(name)[0] != new.info(name)[0]:
        return f"{name!r} has the shape {old.info(name)[0]} in the base and {new.info(name)[0]} in the tuned checkpoint; {cure}"
    return None


def _patterns(wanted: Wanted) -> list[str]:
    return [*wanted.include, *wanted.exclude, *wanted.full, *wanted.tables, *wanted.rules]


def _any(patterns: Sequence[str], module: str) -> bool:
    return any(matches(pattern, module) for pattern in patterns)


def _idle(rules: Mapping[str, Rule], planned: Mapping[str, Planned]) -> list[str]:
    """The rules that decide about nothing."""
    deciding = {next((p for p in rules if matches(p, module)), "") for module, entry in planned.items() if entry.kind != "whole"}
    return [pattern for pattern in rules if pattern not in deciding]


def check_choice(what: str, value: str, known: Sequence[str]) -> None:
    """Raises ConfigError for a value that is not among the known ones."""
    if value not in known:
        raise ConfigError(f"{what} must be one of {choices(known)}, found {value!r}")
