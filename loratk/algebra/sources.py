"""The adapters that a report is about: files and folders of any format, or states, each with a label of its own."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ConfigError, FormatError, UnknownNameError, choices, faults
from ..exchange import AdapterState, Base, Checkpoint, Detected, detect_format, load_adapter
from ..exchange.hub import state_faults
from ..exchange.transform import new_name
from ..exchange.transform import rename as renamed
from ..plugins import Registry


@dataclass(frozen=True, eq=False)
class Source:
    """An adapter under the label that tells it from the others, and the file it came from ("" for a state)."""

    label: str
    state: AdapterState
    path: str = ""


def gather(
    given: Sequence[str | Path | AdapterState],
    registry: Registry,
    *,
    adapters: Collection[str] = (),
    base: Base | None = None,
    format: str | None = None,
    options: Mapping[str, Any] | None = None,
    rename: Mapping[str, str] | None = None,
) -> tuple[list[Source], list[str]]:
    """Load the adapters, and the notes of loading them.

    adapters: the names that are wanted, each from every file that has it; all if empty. format: of all files, by their content if None.
    options: each goes to every file whose format has it. rename: other module paths, in every adapter that has the old one. A label is the
    adapter's name where that is enough to tell them apart, else it has the file's before it. Raises as `load_adapter` does, ConfigError or
    UnknownNameError for what nothing answers to, FormatError for states with faults.
    """
    found: list[Source] = []
    notes: list[str] = []
    told = base.note if isinstance(base, Checkpoint) else None
    files = [item for item in given if not isinstance(item, AdapterState)]
    formats = {str(path): detect_format(path, format=format, registry=registry) for path in files}
    chosen = _options(options or {}, formats)
    _check_names(adapters, {path: detected.format.adapters(Path(path)) for path, detected in formats.items()}, given)
    for item in given:
        if isinstance(item, AdapterState):
            if not adapters or item.name in adapters:
                found.append(Source(item.name, item))
            continue
        path, detected = str(item), formats[str(item)]
        wanted = [name for name in detected.format.adapters(Path(path)) if name in adapters] if adapters else None
        reading = load_adapter(path, format=detected, adapters=wanted, base=base, options=chosen[path], registry=registry)
        notes += [f"{path}: {note}" for note in reading.notes if note != told]
        found += [Source(state.name, state, path) for state in reading.states]
    if wrong := list(dict.fromkeys(fault for source in found if not source.path for fault in state_faults([source.state]))):
        raise FormatError(faults("the adapters are not sound:", wrong))
    return labelled(renamed_each(found, rename or {})), [*dict.fromkeys(notes), *([told] if told is not None else [])]


def _options(options: Mapping[str, Any], formats: Mapping[str, Detected]) -> dict[str, dict[str, Any]]:
    known = {name for detected in formats.values() for name in detected.format.options}
    if unknown := set(options) - known:
        raise ConfigError(f"No format here has the option {choices(unknown)}; there are {choices(known)}.")
    return {path: {key: value for key, value in options.items() if key in found.format.options} for path, found in formats.items()}


def _check_names(wanted: Collection[str], held: Mapping[str, Sequence[str]], given: Sequence[Any]) -> None:
    """Raises UnknownNameError that lists the names that no file has, and the files that have none of the names."""
    if not wanted:
        return
    states = {item.name for item in given if isinstance(item, AdapterState)}
    known = {name for names in held.values() for name in names} | states
    found = [f"no adapter is named {name!r}; there are {choices(known)}" for name in sorted(set(wanted) - known)]
    found += [f"'{path}' holds none of them, only {choices(names)}" for path, names in held.items() if not set(wanted) & set(names)]
    if found:
        raise UnknownNameError(faults("The adapters that are asked for are not there:", found))


def renamed_each(sources: Sequence[Source], names: Mapping[str, str]) -> list[Source]:
    """The sources with other module paths, in every adapter that has the old one. Raises ConfigError for a name that none has."""
    used: set[str | None] = set()
    changed = []
    for source in sources:
        mine = {new_name(path, names)[0] for path in source.state.modules} - {None}
        used |= mine
        fitting = {key: names[key] for key in mine if key is not None}
        state = renamed([source.state], fitting)[0] if fitting else source.state
        changed.append(Source(source.label, state, source.path))
    if idle := set(names) - used:
        raise ConfigError(f"{choices(idle)} is neither a module of any of the adapters nor the beginning of one.")
    return changed


def labelled(sources: Sequence[Source]) -> list[Source]:
    """Labels that are all different: the name; else file and name, or the file where it has one adapter; else numbered."""
    labels = [source.label for source in sources]
    if len(set(labels)) == len(labels):
        return list(sources)
    names: dict[str, set[str]] = defaultdict(set)
    for source in sources:
        names[source.path].add(source.state.name)
    tries = [
        [
            source.state.name if not source.path else short(source.path) + (f":{source.state.name}" if len(names[source.path]) > 1 else "")
            for source in sources
        ]
        for short in (lambda path: Path(path).stem, lambda path: Path(path).name, lambda path: path)
    ]
    labels = max(tries, key=lambda labels: len(set(labels)))  # the shortest of those that tell most apart
    seen: Counter[str] = Counter()
    numbered = []
    for label, source in zip(labels, sources, strict=True):
        seen[label] += 1
        numbered.append(Source(f"{label} ({seen[label]})" if labels.count(label) > 1 else label, source.state, source.path))
    return numbered
