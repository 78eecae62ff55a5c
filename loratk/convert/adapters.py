"""Adapters from one format to another: read, changed as asked, written, with a note for everything that was decided."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ConfigError, StoreError, choices
from ..exchange import AdapterState, Base, Checkpoint, Request, detect_format, formats_of, load_adapter, save_adapter
from ..exchange import portable as make_portable
from ..exchange.base import opened_base
from ..exchange.cautions import scale_lines
from ..exchange.detect import choose, find_format
from ..exchange.fit import fit
from ..exchange.transform import DTYPES, cast
from ..exchange.transform import select as selected
from ..plugins import Registry, default_registry


@dataclass(frozen=True)
class Exported:
    """The names of the adapters that were written, and a line for each thing that was decided on the way."""

    names: list[str]
    notes: list[str]


def export_adapters(
    source: str | Path,
    destination: str | Path,
    *,
    format: str | None = None,
    to: str | None = None,
    adapters: Sequence[str] | None = None,
    base: str | Path | Base | None = None,
    options: Mapping[str, Any] | None = None,
    allow_missing: Collection[str] = (),
    rename: Mapping[str, str] | None = None,
    select: Sequence[str] = (),
    portable: bool = False,
    dtype: str | None = None,
    bake: bool = False,
    bake_rank: int | None = None,
    force: bool = False,
    registry: Registry | None = None,
) -> Exported:
    """Write adapters (all if None) of one file or folder to another in any format.

    The source's format is found by its content unless `format` names it, the destination's by its suffix unless `to` names it. In turn:
    modules are renamed (`rename`), chosen (`select`, globs), baked (`bake`: what the destination cannot hold is approximated, else it is
    refused; with `portable` other methods are made LoRA though it could hold them), made portable, cast to `dtype`. `options` are those of
    either format, `from:NAME` and `to:NAME` say which where both have one of that name; a `base` is given to both.
    Raises StoreError if the destination is there already, unless `force`; it is written at once or not at all.
    """
    registry = registry or default_registry()
    check_request(destination, dtype, force)
    formats = formats_of(registry)
    target = find_format(to, formats) if to is not None else choose(Path(destination), formats)
    found = detect_format(source, format=format, registry=registry)
    reads, writes = split_options(options or {}, {"from": found.format.options, "to": target.options})
    with opened_base(base, registry.stores) as opened:
        reading = load_adapter(
            source, format=found, adapters=adapters, base=opened, options=reads, allow_missing=allow_missing, rename=rename,
            registry=registry,
        )  # fmt: skip
        states, notes = reading.states, [f"{source}: {reading.notes[0]}", *reading.notes[1:]]
        del reading  # of its arrays only what each step makes of them is kept
        states = selected(states, select) if select else states
        notes += [f"adapter {state.name!r}: {line}" for state in states for line in scale_lines(state)]
        if bake:
            states, said = fit(target, states, Request(base=opened, bake=True), rank=bake_rank, plain=portable)
            notes += said
        if portable:
            states = [make_portable(state) for state in states]
            notes += [f"adapter {state.name!r}, portable: {line}" for state in states for line in _folded(state)]
        if dtype is not None:
            states = cast(states, dtype)
        notes.append(f"{destination}: written as {target.title}")
        notes += save_adapter(
            destination, states, format=target.name, base=opened, options=writes, bake=bake, bake_rank=bake_rank, registry=registry
        )  # fmt: skip
        if isinstance(opened, Checkpoint) and not opened.used:
            notes.append(f"the base '{opened.path}' was not needed")
    return Exported([state.name for state in states], list(dict.fromkeys(notes)))


def _folded(state: AdapterState) -> list[str]:
    ranks = [record["rank"] for record in state.modules.values() if "scaling" in record]
    return [f"rank and alpha {ranks[0]} in all modules, their scaling multiplied into lora_B"] if ranks else []


def split_options(options: Mapping[str, Any], sides: Mapping[str, Collection[str]]) -> list[dict[str, Any]]:
    """Options for each side, such as "from" and "to": NAME goes to every side that has it, SIDE:NAME to that one.

    Raises ConfigError that lists those no side has.
    """
    given: dict[str, dict[str, Any]] = {side: {} for side in sides}
    unknown = []
    for key, value in options.items():
        side, _, name = key.rpartition(":")
        takers = [taker for taker, known in sides.items() if side in ("", taker) and name in known]
        for taker in takers:
            given[taker][name] = value
        if not takers:
            unknown.append(key)
    if unknown:
        known = "; ".join(f"{side}: {', '.join(sorted(names)) or 'none'}" for side, names in sides.items())
        raise ConfigError(f"No format here has the option {choices(unknown)}. There are {known}.")
    return list(given.values())


def check_request(destination: str | Path, dtype: str | None, force: bool) -> None:
    """Raises ConfigError for an unknown dtype, StoreError where something is in the way."""
    if dtype not in (None, *DTYPES):
        raise ConfigError(f"dtype must be one of {', '.join(DTYPES)}, found {dtype!r}.")
    if Path(destination).exists() and not force:
        raise StoreError(f"'{destination}' is there already and was left as it is; pass force=True (--force) to replace it.")
