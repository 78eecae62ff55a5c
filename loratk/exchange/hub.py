"""Adapters from and to files of any format, checked as a whole: the one door that everything above goes through."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import ConfigError, FormatError, UnknownNameError, choices, faults
from ..plugins import Registry, default_registry
from .base import Checkpoint, opened_base
from .cautions import cautions
from .detect import Detected, choose, detect, find_format
from .fit import fit
from .format import AdapterFormat, Base, Reading, Request
from .state import AdapterState, metadata_faults, module_faults, value_faults
from .stores import formats_of
from .transform import rename as renamed


def detect_format(path: str | Path, *, format: str | Detected | None = None, registry: Registry | None = None) -> Detected:
    """The format of a file or folder by its content, with the evidence; or the one that is named, or was found before.

    Raises StoreError (nothing there), UnknownNameError (no such format), ConfigError (several recognise it), FormatError (none does).
    """
    registry = registry or default_registry()
    if isinstance(format, Detected):
        return format
    formats = formats_of(registry)
    if format is not None:
        return Detected(find_format(format, formats), "named by the caller")
    return detect(Path(path), formats, registry.stores)


def load_adapter(
    path: str | Path,
    *,
    format: str | Detected | None = None,
    adapters: Collection[str] | str | None = None,
    base: str | Path | Base | None = None,
    options: Mapping[str, Any] | None = None,
    allow_missing: Collection[str] = (),
    rename: Mapping[str, str] | None = None,
    finite: bool = True,
    registry: Registry | None = None,
) -> Reading:
    """Read adapters (a name, names, or all) of any format: plain states, and a note for each thing that had to be decided.

    format: by content if None, else a name, or what `detect_format` found. base: the base's weights, where a format needs their names or
    values. options: the format's own. allow_missing: tensors, by their name in the file, that may be absent; one that is not missed is
    an error. rename: other module paths, as in `transform.rename`. finite: whether values must be. Strict: raises FormatError with every
    fault of the file, ConfigError, StoreError, UnknownNameError.
    """
    registry = registry or default_registry()
    found = detect_format(path, format=format, registry=registry)
    path, names = Path(path), [adapters] if isinstance(adapters, str) else adapters
    check_options(found.format, options or {})
    if names is not None and (unknown := set(names) - set(known := found.format.adapters(path))):
        raise UnknownNameError(f"'{path}' holds no adapter named {choices(unknown)}; it holds {choices(known)}")
    with opened_base(base, registry.stores) as opened:
        allowed = [allow_missing] if isinstance(allow_missing, str) else list(allow_missing)
        request = Request(options=dict(options or {}), base=opened, adapters=names, allow_missing=allowed)
        reading = found.format.read(path, request)
        if there := [name for name in allowed if name not in request.missed]:
            said = f"{choices(there)} may be missing, but reading '{path}' as {found.format.title} missed no tensor of that name"
            raise ConfigError(f"{said}; check the spelling, or leave it out (allow_missing, --allow-missing).")
        notes = [f"read as {found.format.title}: {found.evidence}", *_base_notes(opened), *reading.notes]
    if wrong := list(state_faults(reading.states, finite=finite)):
        raise FormatError(faults(f"the adapters in '{path}' are not sound; correct the file or get a new copy:", wrong))
    states = renamed(reading.states, rename) if rename else list(reading.states)
    notes += [f"adapter {state.name!r}: {line}" for state in states for line in cautions(state)]
    return replace(reading, states=states, notes=notes)


def save_adapter(
    path: str | Path,
    states: AdapterState | Iterable[AdapterState],
    *,
    format: str | None = None,
    base: str | Path | Base | None = None,
    options: Mapping[str, Any] | None = None,
    bake: bool = False,
    bake_rank: int | None = None,
    registry: Registry | None = None,
) -> list[str]:
    """Write adapters in any format, by the path's suffix if None is named, and return notes: what was decided, folded or left out.

    The file or folder is written at once or not at all, in place of one that is there. What the format cannot express is refused by name
    (ConfigError), or with `bake` written as the nearest thing it can; `bake_rank` is the rank of what is approximated by singular values.
    """
    registry = registry or default_registry()
    formats = formats_of(registry)
    path, states = Path(path), [states] if isinstance(states, AdapterState) else list(states)
    chosen = find_format(format, formats) if format is not None else choose(path, formats)
    check_options(chosen, options or {})
    wrong = ["there is no adapter"] if not states else list(state_faults(states))
    if wrong:
        raise ConfigError(faults(f"nothing was written to '{path}': the adapters have faults", wrong))
    with opened_base(base, registry.stores) as opened:
        request = Request(options=dict(options or {}), base=opened, bake=bake)
        fitting, notes = fit(chosen, states, request, rank=bake_rank)
        return [*_base_notes(opened), *notes, *chosen.write(path, fitting, request)]


def state_faults(states: Sequence[AdapterState], *, finite: bool = True) -> Iterator[str]:
    """What is wrong with states by the contract of `AdapterState`, a line each."""
    names = Counter(state.name for state in states)
    yield from (f"two adapters are named {name!r}" for name, count in sorted(names.items()) if count > 1)
    for state in states:
        found: list[str] = [] if state.name else ["an adapter needs a name"]
        for module, held in state.parameters().items():
            found += module_faults(module, state.modules.get(module, {}), {key: array.shape for key, array in held.items()})
        found += value_faults(state.tensors) if finite else ()
        found += metadata_faults(state.metadata)
        yield from (f"adapter {state.name!r}: {fault}" for fault in found)


def check_options(format: AdapterFormat, options: Mapping[str, Any]) -> None:
    """Raises ConfigError that lists the options a format does not have."""
    if unknown := set(options) - set(format.options):
        raise ConfigError(f"The format {format.name!r} has no option {choices(unknown)}; its options: {choices(format.options)}.")


def _base_notes(base: Base | None) -> list[str]:
    return [base.note] if isinstance(base, Checkpoint) else []
