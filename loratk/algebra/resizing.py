"""Adapters of a file, or states, with other ranks."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ..errors import ConfigError, FormatError, StoreError, faults
from ..exchange import AdapterState, Base, formats_of, load_adapter, save_adapter
from ..exchange.base import opened_base
from ..exchange.detect import Detected, choose, find_format
from ..exchange.format import AdapterFormat
from ..exchange.hub import detect_format, state_faults
from ..plugins import Registry, default_registry
from .ranks import Rule
from .result import Result, Track, untracked
from .truncation import truncate


@dataclass(frozen=True, eq=False)
class Resized:
    """What became of each adapter, the ranks of its modules before, and a line for each thing that was decided on the way.

    format: what the destination was written as; "" where nothing was written.
    """

    results: list[Result]
    before: list[dict[str, int]]
    notes: list[str] = field(default_factory=list)
    format: str = ""

    @property
    def states(self) -> list[AdapterState]:
        """The new adapters."""
        return [result.state for result in self.results]

    def to_json(self) -> dict[str, Any]:
        """The ranks before and after and the certificates as plain data for JSON."""
        adapters = []
        for result, before in zip(self.results, self.before, strict=True):
            told = result.certificate.to_json()
            modules = {name: {"rank_before": before.get(name), **entry} for name, entry in told["modules"].items()}
            adapters.append({"name": result.state.name, **told, "modules": modules})
        return {"adapters": adapters, "format": self.format or None, "notes": self.notes}


def resize(
    source: str | Path | AdapterState | Iterable[AdapterState],
    destination: str | Path | None = None,
    *,
    rank: int | None = None,
    ratio: float | None = None,
    energy: float | None = None,
    error: float | None = None,
    patterns: Mapping[str, Rule | None] | None = None,
    grow: bool = False,
    format: str | Detected | None = None,
    to: str | None = None,
    adapters: Collection[str] | str | None = None,
    base: str | Path | Base | None = None,
    options: Mapping[str, Any] | None = None,
    to_options: Mapping[str, Any] | None = None,
    force: bool = False,
    dry_run: bool = False,
    registry: Registry | None = None,
    track: Track = untracked,
) -> Resized:
    """Give the modules of adapters (a file or folder of any format, or states) other ranks, each update staying the best of its rank.

    rank caps the rank, or with `grow` is it; ratio, energy and error decide it by the singular values (`ranks.Rule`); `patterns` have
    rules of their own for the modules they match, as in `truncation.truncate`, where the rest is told too. alpha and scaling change so
    that the update stays as it was; dtypes stay. Without a destination nothing is written. It is written in the format `to`, else the one
    of its suffix, else the source's; at once or not at all, and not over what is there unless `force`. `options` are those of the
    source's format, `to_options` the destination's. `dry_run`: write to a temporary place, which is removed. Raises ConfigError for no
    rule, rules without sense and modules they do not fit, and what `load_adapter` and `save_adapter` raise.
    """
    if Rule(rank, ratio, energy, error) == Rule() and not patterns:
        raise ConfigError("resizing needs a rule: rank, ratio, energy or error, for all modules or for those of a pattern")
    registry = registry or default_registry()
    if destination is not None:
        refuse_existing(destination, force)
    with opened_base(base, registry.stores) as opened:
        found, states, notes = _states(source, format, adapters, opened, options or {}, registry)
        target = None if destination is None else target_format(Path(destination), to, found, registry)
        rules: dict[str, Any] = {"rank": rank, "ratio": ratio, "energy": energy, "error": error, "patterns": patterns}
        results = [truncate(state, **rules, grow=grow, base=opened, track=track) for state in states]
        before = [{path: record["rank"] for path, record in state.modules.items() if "rank" in record} for state in states]
        for result in results:
            notes += [f"adapter {result.state.name!r}, {line}" for line in result.notes]
        if target is not None and destination is not None:
            notes += written(destination, [result.state for result in results], target, opened, to_options, registry, dry_run)
    return Resized(results, before, list(dict.fromkeys(notes)), target.name if target else "")


def _states(
    source: str | Path | AdapterState | Iterable[AdapterState],
    format: str | Detected | None,
    adapters: Collection[str] | str | None,
    base: Base | None,
    options: Mapping[str, Any],
    registry: Registry,
) -> tuple[Detected | None, list[AdapterState], list[str]]:
    """How the source was read, its adapters, and the notes of reading it."""
    if isinstance(source, str | Path):
        found = detect_format(source, format=format, registry=registry)
        reading = load_adapter(source, format=found, adapters=adapters, base=base, options=options, registry=registry)
        return found, reading.states, [f"{source}: {reading.notes[0]}", *reading.notes[1:]]
    states = [source] if isinstance(source, AdapterState) else list(source)
    wrong = ["there is no adapter"] if not states else list(state_faults(states))
    if wrong:
        raise FormatError(faults("the adapters cannot be resized; they have faults:", wrong))
    return None, states, []


def target_format(path: Path, to: str | None, found: Detected | None, registry: Registry) -> AdapterFormat:
    """The format of the destination: as asked, by its suffix, or where several have that, the source's if it is one of them."""
    formats = formats_of(registry)
    if to is not None:
        return find_format(to, formats)
    try:
        return choose(path, formats)
    except ConfigError:
        own = found.format if found is not None else None
        if own is None or not own.writable:
            raise
        if any(path.name.lower().endswith(end.lower()) for end in own.suffixes) or (own.folder and not path.suffix):
            return own
        raise


def written(
    destination: str | Path,
    states: list[AdapterState],
    target: AdapterFormat,
    base: Base | None,
    options: Mapping[str, Any] | None,
    registry: Registry,
    dry_run: bool,
) -> list[str]:
    """Write adapters in a format, in a dry run to a temporary place which is removed, and return the notes."""
    with TemporaryDirectory() as folder:
        place = Path(folder) / Path(destination).name if dry_run else Path(destination)
        said = save_adapter(place, states, format=target.name, base=base, options=options, registry=registry)
    return [f"{destination}: {'would be ' * dry_run}written as {target.title}", *said]


def refuse_existing(destination: str | Path, force: bool) -> None:
    """Raises StoreError where something is in the way."""
    if Path(destination).exists() and not force:
        raise StoreError(f"'{destination}' is there already and was left as it is; pass force=True (--force) to replace it.")
