"""An adapter with other ranks: each module's update as the best one of the rank that a rule gives it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import ConfigError, choices, faults
from ..exchange.factors import Pair, norm
from ..exchange.format import Base
from ..exchange.joining import joined_states
from ..exchange.plain import is_shared
from ..exchange.state import AdapterState
from .certificate import Certificate, Entry, measured
from .lineage import metadata_of
from .linear import WHOLE, Linear, Module, finished, linear_of, packed, pairs_of, parts_of
from .ranks import Rule
from .result import Result, Track, rules_for, untracked
from .rounding import svd


def truncate(
    state: AdapterState,
    *,
    rank: int | None = None,
    ratio: float | None = None,
    energy: float | None = None,
    error: float | None = None,
    patterns: Mapping[str, Rule | None] | None = None,
    grow: bool = False,
    base: Base | None = None,
    name: str | None = None,
    track: Track = untracked,
) -> Result:
    """Each update as the best one of the rank that its rule needs (`ranks.Rule`), dtypes kept, alpha = rank and scaling 1.

    patterns: other rules for the modules a pattern matches, the first that does counts; None leaves a module as it is, as does no rule at
    all. A rank above a module's own leaves it at its own, or with `grow` fills it up with zeros. The groups of a convolution and the
    experts of a stack have one rank each, of a convolution `rank` counts all groups. Of DoRA the update before the magnitude is meant,
    and its error. `base`: the base's weights, for methods whose factors need them (VeRA, GLoRA). Whole modules, biases and what has no rank
    stay as they are. Raises ConfigError that lists each module of a method without exact
    factors, and each number that is too large for the dtype.
    """
    rule = Rule(rank, ratio, energy, error)
    if grow:
        _check_growth([rule, *(other for other in (patterns or {}).values() if other is not None)])
    (state,), notes = joined_states([state])
    parameters, found = state.parameters(), list[str]()
    candidates = [module for module, held in parameters.items() if _has_rank(state.modules[module], held)]
    if not candidates:
        methods = choices({record["method"] for record in state.modules.values()})
        raise ConfigError(f"adapter {state.name!r} has no module with a rank, only {methods}; loratk.lora_of may make LoRA of it")
    rankless = [
        path for path, record in state.modules.items() if path not in candidates and record["method"] not in (*WHOLE, "bias", "vera")
    ]
    notes += [f"module {path!r} stays as it is: {state.modules[path]['method']} has no rank" for path in rankless]
    rules = rules_for(candidates, None if rule == Rule() else rule, patterns or {})
    modules: dict[str, Module] = {module: (dict(state.modules[module]), held) for module, held in parameters.items()}
    entries: dict[str, Entry] = {}
    for module in track(candidates, "resizing"):
        record, held = modules[module]
        plain = {key: array for key, array in held.items() if key != "magnitude" or "lora_A" not in held}
        try:
            linear = linear_of(state, module, plain, base)
        except ConfigError as error:
            found += [] if rules[module] is None else [f"module {module!r}: {error}"]
            continue
        if (chosen := rules[module]) is None:
            entries[module] = Entry(record["rank"], 0.0, 1.0, norm(linear.pairs))
            continue
        faulty: list[str] = []
        modules[module], entries[module], said = _resized(linear, held, chosen, grow, faulty)
        found += [f"module {module!r}: {fault}" for fault in faulty]
        notes += [f"module {module!r}: {line}" for line in said]
    if found:
        raise ConfigError(faults(f"adapter {state.name!r} cannot be resized:", found))
    metadata, _ = metadata_of([state], "truncate", **_told(rule, patterns or {}))
    return Result(finished(state, modules, name or state.name, metadata), Certificate(entries), notes)


def _check_growth(rules: Sequence[Rule]) -> None:
    """Raises ConfigError where there is no rank to grow to, or other rules beside it, which say how far to shrink."""
    asked = [rule for rule in rules if rule.rank is not None]
    if not asked:
        raise ConfigError("growing needs the rank to grow to: rank (--rank), for all modules or for those of a pattern")
    if any(rule != Rule(rule.rank) for rule in asked):
        raise ConfigError("growing goes with a rank alone; ratio, energy and error beside it would say how far to shrink")


def _has_rank(record: Mapping[str, Any], held: Mapping[str, np.ndarray]) -> bool:
    return "rank" in record and record["method"] not in (*WHOLE, "bias") and not is_shared(record, held)


def _resized(linear: Linear, held: Mapping[str, np.ndarray], rule: Rule, grow: bool, found: list[str]) -> tuple[Module, Entry, list[str]]:
    """A module under a rule, its entry, and what is to be said of it."""
    parts, record = parts_of(linear.record), linear.record
    notes = [] if rule.rank is None or rule.rank >= parts else [f"rank {parts}, as each of its {parts} groups needs one"]
    if rule == Rule(rule.rank):
        own = linear.pairs[0][0].shape[1]
        asked = max(1, rule.rank // parts) if rule.rank is not None else own
        pairs = [svd(pair).pair(asked if grow else min(asked, own)) for pair in linear.pairs]
        if grow and asked > own:
            notes.append(f"grown from rank {own * parts} with zeros in both factors, which training does not move")
    else:
        pairs, capped = best(linear.pairs, rule, parts)
        notes += [f"its other rules ask for more than rank {rule.rank}"] if capped else []
    source = f"resized from rank {record['rank']}, scaling {record['scaling']:g}"
    new, factors = packed(record, pairs, linear.arrays, linear.stored, source, found)
    entry = measured(linear.pairs, pairs_of((new, factors)), new["rank"])
    if "magnitude" in held and "lora_A" in held:
        new["method"], factors["magnitude"] = record["method"], held["magnitude"]
        if mark := record.get("dtypes", {}).get("magnitude"):
            new["dtypes"] = new.get("dtypes", {}) | {"magnitude": mark}
    return (new, factors), entry, notes


def best(pairs: Sequence[Pair], rule: Rule, parts: int = 1) -> tuple[list[Pair], bool]:
    """The best pairs of one rank for all parts of an update, by a rule whose cap counts `parts` of them together, and whether it cut."""
    done = [svd(pair) for pair in pairs]
    spectra = [part.s for part in done]
    rank = rule.choose(spectra, parts)
    return [part.pair(rank) for part in done], rank < rule.needed(spectra)


def _told(rule: Rule, patterns: Mapping[str, Rule | None]) -> dict[str, Any]:
    """The rules, for the lineage."""
    by = {pattern: None if other is None else _given(other) for pattern, other in patterns.items()}
    return {**_given(rule), **({"patterns": by} if by else {})}


def _given(rule: Rule) -> dict[str, Any]:
    return {key: value for key, value in vars(rule).items() if value is not None}
