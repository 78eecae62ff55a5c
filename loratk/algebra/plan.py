"""What a comparison would compare, without doing it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from ..exchange import Base
from ..plugins import Registry
from .sources import Source
from .updates import Updates, disagreements


@dataclass(frozen=True)
class PlannedAdapter:
    """An adapter: its modules, those whose update depends on the base, and why, by module, nothing can be told of one."""

    label: str
    path: str
    modules: list[str]
    need_base: list[str]
    obstacles: dict[str, str]


@dataclass(frozen=True)
class PlannedPair:
    """Two adapters: the modules that would be compared, those in both that cannot be, with the reasons, and those in one only."""

    a: str
    b: str
    modules: list[str]
    not_compared: dict[str, list[str]]
    only_a: list[str]
    only_b: list[str]


@dataclass(frozen=True)
class Plan:
    """What would be compared, and the notes of loading it. intruders: whether they would be looked for."""

    adapters: list[PlannedAdapter]
    pairs: list[PlannedPair]
    intruders: bool
    notes: list[str]


def planned(sources: Sequence[Source], notes: Sequence[str], registry: Registry, base: Base | None, intruders: bool) -> Plan:
    """What comparing these adapters would do, as far as records and names tell."""
    held = [Updates(source.state, registry, base) for source in sources]
    adapters = []
    for source, updates in zip(sources, held, strict=True):
        obstacles = {name: why for name in updates.modules if (why := updates.obstacle(name))}
        need = [name for name in updates.modules if updates.needs_base(name)]
        adapters.append(PlannedAdapter(source.label, source.path, updates.modules, need, obstacles))
    pairs = []
    for (one, mine), (two, other) in combinations(zip(adapters, held, strict=True), 2):
        both, faulty = [], {}
        for name in (name for name in one.modules if name in other):
            faults = [f"{planned.label}: {planned.obstacles[name]}" for planned in (one, two) if name in planned.obstacles]
            if faults := faults or disagreements(mine.state.modules[name], other.state.modules[name]):
                faulty[name] = faults
            else:
                both.append(name)
        alone = ([name for name in a.modules if name not in b] for a, b in ((one, other), (two, mine)))
        pairs.append(PlannedPair(one.label, two.label, both, faulty, *alone))
    return Plan(adapters, pairs, intruders and base is not None, list(notes))
