"""The adapters of a merge: read from files of any format, named, summed up for the ledger, and checked against the base."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import ConfigError, UnknownNameError, choices
from ..exchange import AdapterState, Checkpoint, detect_format, load_adapter
from ..exchange.cautions import scale_lines
from ..exchange.transform import rename as renamed
from ..exchange.transform import select as selected
from ..lora.fingerprint import fingerprint
from ..plugins import Registry
from .adapters import split_options
from .checksums import adapter_sha256
from .ledger import Ledger, MergedAdapter

Given = str | Path | AdapterState


@dataclass(frozen=True)
class Loaded:
    """Adapters in their order: as they are merged, what the ledger says of them, and notes. `store`: options of the result's store."""

    states: list[AdapterState]
    adapters: list[MergedAdapter]
    notes: list[str]
    store: dict[str, Any]


def load(
    given: Sequence[Given],
    weights: Sequence[float],
    base: Checkpoint,
    registry: Registry,
    *,
    names: Collection[str] | None = None,
    format: str | None = None,
    options: Mapping[str, Any] | None = None,
    store: Collection[str] = (),
    select: Sequence[str] = (),
    rename: Mapping[str, str] | None = None,
    allow_missing: Collection[str] = (),
) -> Loaded:
    """Read the adapters, all of each file or those of some names, the weight of a file being that of each adapter in it.

    What the ledger says of an adapter is about all of it, as it is in the file: `select` and `rename` do not make it another one. Raises as
    `load_adapter` does, ConfigError for options nobody has, UnknownNameError for names that no file has.
    """
    found = {str(path): detect_format(path, format=format, registry=registry) for path in given if not isinstance(path, AdapterState)}
    known = {name for detected in found.values() for name in detected.format.options}
    reads, writes = split_options(options or {}, {"from": known, "to": store})
    states: list[AdapterState] = []
    adapters: list[MergedAdapter] = []
    notes: list[str] = []
    held: set[str] = set()
    for item, weight in zip(given, weights, strict=True):
        if isinstance(item, AdapterState):
            read, file = [item], ""
        else:
            detected, file = found[str(item)], Path(item).name
            there = detected.format.adapters(Path(item)) if names is not None else []
            held |= set(there)
            wanted = None if names is None else [name for name in there if name in names]
            if wanted == []:
                continue
            mine = {name: value for name, value in reads.items() if name in detected.format.options}
            reading = load_adapter(
                item, format=detected, adapters=wanted, base=base, options=mine, allow_missing=allow_missing, registry=registry
            )  # fmt: skip
            first, *rest = reading.notes
            read, notes = reading.states, [*notes, f"{item}: {first}" if len(given) > 1 else first, *rest]
        for state in read:
            if names is None or state.name in names:
                states.append(state)
                adapters.append(MergedAdapter(state.name, adapter_sha256(state), float(weight), file))
    if lacks := set(names or ()) - {state.name for state in states}:
        raise UnknownNameError(f"there is no adapter named {choices(lacks)}; there are {choices(held)} (--adapter)")
    if not states:
        raise ConfigError("there is no adapter to merge; give at least one")
    states = renamed(states, rename) if rename else states
    states = selected(states, select) if select else states
    notes += [f"adapter {state.name!r}: {line}" for state in states for line in scale_lines(state)]
    return Loaded(_labelled(states, adapters), adapters, notes, writes)


def _labelled(states: Sequence[AdapterState], adapters: Sequence[MergedAdapter]) -> list[AdapterState]:
    """The states under names that tell them apart in messages: with the file where several have one name."""
    names = [state.name for state in states]
    return [
        replace(state, name=f"{adapter.file}:{state.name}") if names.count(state.name) > 1 and adapter.file else state
        for state, adapter in zip(states, adapters, strict=True)
    ]


def foreign(states: Sequence[AdapterState], base: Checkpoint, ledger: Ledger | None) -> tuple[list[str], str]:
    """Which adapters were made for another base, a line each, and the base's fingerprint: "" if none of them tells that of its own.

    For a base that was merged into before, that of what it was at first counts, which its ledger knows.
    """
    if not any(state.fingerprint for state in states):
        return [], ledger.fingerprint if ledger else ""
    mine = ledger.fingerprint if ledger else fingerprint(base.arrays())
    cure = "give the weights it was trained on, or pass check_base=False (--any-base) if you know that they fit"
    if not mine:
        known = [state.name for state in states if state.fingerprint]
        unknown = f"is for one base alone, and what '{base.path}' was before it was merged into is not known"
        return [f"adapter {name!r} {unknown}; {cure}" for name in known], ""
    return [
        f"adapter {state.name!r} was made for another base (fingerprint {state.fingerprint[:12]}..., this one has {mine[:12]}...); {cure}"
        for state in states if state.fingerprint not in ("", None, mine)
    ], mine  # fmt: skip
