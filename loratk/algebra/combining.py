"""Adapters made one by a merge rule: from files or states, module by module, with certificates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..errors import ConfigError, LoratkError, choices, faults
from ..exchange import AdapterState, Base, Checkpoint
from ..exchange.base import opened_base
from ..lora.fingerprint import fingerprint
from ..plugins import Registry, default_registry
from .certificate import Certificate, Entry
from .deltas import Effects, collected
from .exact import Exact
from .fused import Draws
from .fused_module import ModuleFusing
from .fusing import Fusing
from .lineage import common_fingerprint, metadata_of
from .linear import Module, finished
from .ranks import Rule
from .result import Result, Track, untracked
from .rules import MergeRule
from .shares import Layers, shares


@dataclass(frozen=True, eq=False)
class Combined(Result):
    """An adapter, its certificate against what the rule exactly gives, and against_sum: that against the weighted sum of the adapters."""

    against_sum: Certificate = field(default_factory=Certificate)


def combine(
    states: Sequence[AdapterState],
    weights: Sequence[float] | None = None,
    *,
    rule: str | MergeRule = "sum",
    options: Mapping[str, Any] | None = None,
    layers: Layers | None = None,
    rank: int | None = None,
    ratio: float | None = None,
    energy: float | None = None,
    error: float | None = None,
    dense: bool = False,
    base: str | Path | Base | None = None,
    any_base: bool = False,
    seed: int = 0,
    name: str = "combined",
    labels: Sequence[str] | None = None,
    registry: Registry | None = None,
    track: Track = untracked,
) -> Combined:
    """One adapter of several, by a rule that works on what each adds to each weight, every scaling applied once (weights 1 if None).

    A module that is not in all adapters counts as zeros in the others. rule, options: a registered rule (`loratk plugins`) and its own
    options. layers: factors of the weights by pattern, for all adapters or for each; the first pattern that matches counts. rank, ratio,
    energy, error: the rank of each update (`ranks.Rule`); with none of them sums keep all their ranks, and rules that work on entries have
    the ranks of the adapters together. dense: weights stay whole, as differences (`diff`), and nothing is rounded away. base: the weights,
    for methods that depend on them (DoRA, IA3, whole modules). seed: random rules draw for each module and adapter by its name (of several
    with one name by their order), whatever the order of modules. labels: what messages call the adapters.

    Raises ConfigError that lists every module that does not fit, UnknownNameError for an unknown rule, and ConfigError for adapters of
    different bases unless `any_base`.
    """
    registry, states = registry or default_registry(), list(states)
    chosen = registry.merge_rule(rule) if isinstance(rule, str) else rule
    settled, cut = chosen.settled(options or {}), Rule(rank, ratio, energy, error)
    given = [1.0] * len(states) if weights is None else list(weights)
    _check(states, given, cut, dense, seed)
    with opened_base(base, registry.stores) as opened:
        mark = common_fingerprint(states, any_base)
        if isinstance(opened, Checkpoint) and mark and not any_base and fingerprint(opened.arrays()) != mark:
            raise ConfigError(f"the adapters were made for another base than '{opened.path}'; pass any_base=True (--any-base) if it fits")
        exacts = [Exact(state, registry, opened) for state in states]
        effects = [Effects(exact, label) for exact, label in zip(exacts, labels or [state.name for state in states], strict=True)]
        paths = list(dict.fromkeys(module for one in effects for module in one.modules))
        found = list(_overlaps(states, paths))
        by = shares(given, layers or {}, paths)
        fusing = ModuleFusing(Fusing(chosen, settled, _draws(states, seed), cut), dense, exacts[0])
        modules: dict[str, Module] = {}
        entries: tuple[dict[str, Entry], dict[str, Entry]] = {}, {}
        for path in track(paths, "combining"):
            before = len(found)
            held = collected(effects, path, found)
            wrong = [] if len(found) > before else fusing.misfits(held, by[path])
            if not found and not wrong:  # with a fault nothing is written: only others are looked for
                try:
                    modules[path], entries[0][path], entries[1][path] = fusing.of(path, held, by[path], wrong)
                except LoratkError as fault:
                    wrong.append(str(fault))
            found += [f"module {path!r}: {fault}" for fault in wrong]
    if found:
        raise ConfigError(faults(f"These adapters cannot be combined by {chosen.name!r} ({choices(one.label for one in effects)}):", found))
    facts = {"options": settled, "layers": dict(layers or {}), **{key: value for key, value in vars(cut).items() if value is not None}}
    metadata, notes = metadata_of(states, chosen.name, given, **{key: value for key, value in facts.items() if value}, seed=seed)
    first = replace(next((state for state in states if state.config), states[0]), fingerprint=mark)
    return Combined(finished(first, modules, name, metadata), Certificate(entries[0]), notes, Certificate(entries[1]))


def _check(states: Sequence[AdapterState], weights: Sequence[float], cut: Rule, dense: bool, seed: int) -> None:
    """Raises ConfigError for arguments that make no sense, or contradict each other."""
    if not states or len(states) != len(weights):
        raise ConfigError(f"there must be at least one adapter, and a weight for each, found {len(states)} and {len(weights)} weights")
    if dense and cut != Rule():
        raise ConfigError("what stays dense has no rank; leave out dense, or rank, ratio, energy and error")
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ConfigError(f"seed must be a whole number from 0 up, found {seed!r}")


def _draws(states: Sequence[AdapterState], seed: int) -> list[Draws]:
    """The streams of each adapter: by its name, those of one name by their order."""
    seen: Counter[str] = Counter()
    streams = []
    for state in states:
        streams.append(Draws(seed, (state.name, str(seen[state.name]))))
        seen[state.name] += 1
    return streams


def _overlaps(states: Sequence[AdapterState], paths: Sequence[str]) -> list[str]:
    """Fused projections that one adapter changes as a whole and another block by block."""
    blocks = {module for state in states for module, record in state.modules.items() if "columns" in record}
    return [
        f"module {module!r} is a block of {whole!r}, which another adapter changes as a whole"
        for module in sorted(blocks)
        if (whole := module.rpartition(".")[0]) in paths
    ]
