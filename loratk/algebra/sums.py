"""Sums of adapters, exactly: the factors of all of them side by side, so no cross terms, and each scaling once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..errors import ConfigError, LoratkError, faults
from ..exchange.factors import Pair
from ..exchange.state import AdapterState
from ..exchange.transform import cast_array
from .certificate import Certificate, Entry, measured, measured_arrays
from .lineage import common_fingerprint, metadata_of
from .linear import BLOCKS, FACTORS, WHOLE, Linear, Module, finished, linear_modules, packed, pairs_of, parts_of, promoted
from .ranks import Rule
from .result import Result, Track, untracked
from .rounding import concatenated, svd
from .truncation import best

ALIKE = ("shape", "groups", "experts", "kernel", "columns", BLOCKS)
"""What of two records must agree for updates to be added, where both say it."""


def add(
    states: Sequence[AdapterState],
    weights: Sequence[float] | None = None,
    *,
    rank: int | None = None,
    ratio: float | None = None,
    energy: float | None = None,
    error: float | None = None,
    name: str | None = None,
    any_base: bool = False,
    track: Track = untracked,
    rule: str = "sum",
) -> Result:
    """The weighted sum of adapters (weights 1 if None), module by module: exact, of the sum of their ranks, or rounded by a rule.

    A module that is not in all of them counts as zero in the others. Ranks, alphas and rslora may differ: of each the update is added.
    Biases and differences of weights are added too; modules kept whole (`full`) only where the weights of those that hold them sum to 1,
    for else their base would be needed. Factors keep their dtype where they are exact in it, else they become float32; rounded ones keep
    theirs. A sum of higher rank than the weight can have is brought to that one. Adapters for different bases are refused unless
    `any_base`. `rule` is what the lineage calls it, and the adapter, without a `name` and where the adapters do not all have one. Raises
    ConfigError that lists each module that cannot be added (DoRA, unknown methods, shapes that differ).
    """
    states, weights = list(states), [1.0] * len(states) if weights is None else [float(weight) for weight in weights]
    if not states or len(states) != len(weights) or not all(map(math.isfinite, weights)):
        raise ConfigError(f"a sum needs at least one adapter and a finite weight for each, found {len(states)} and the weights {weights}")
    found: list[str] = []
    held = [linear_modules(state, found) for state in states]
    fingerprint, cut = common_fingerprint(states, any_base), Rule(rank, ratio, energy, error)
    modules: dict[str, Module] = {}
    entries: dict[str, Entry] = {}
    paths = list(dict.fromkeys(module for one in held for module in one))
    for module in track([] if found else paths, "adding"):
        terms = [(one[module], weight) for one, weight in zip(held, weights, strict=True) if module in one]
        faulty: list[str] = []
        try:
            modules[module], entries[module] = _sum(terms, cut, rule, faulty)
        except LoratkError as fault:
            faulty.append(str(fault))
        found += [f"module {module!r}: {fault}" for fault in faulty]
    if found:
        raise ConfigError(faults(f"These adapters cannot be added ({', '.join(repr(state.name) for state in states)}):", found))
    told = {key: value for key, value in vars(cut).items() if value is not None}
    metadata, notes = metadata_of(states, rule, weights, **told)
    first = replace(next((state for state in states if state.config), states[0]), fingerprint=fingerprint)
    alike = {state.name for state in states}
    return Result(finished(first, modules, name or (states[0].name if len(alike) == 1 else rule), metadata), Certificate(entries), notes)


def subtract(a: AdapterState, b: AdapterState, **given: Any) -> Result:
    """a - b, exactly; what else may be given is that of `add`."""
    return add([a, b], [1.0, -1.0], **{"rule": "difference", **given})


def average(states: Sequence[AdapterState], **given: Any) -> Result:
    """The mean of adapters, exactly; what else may be given is that of `add`."""
    return add(states, [1 / len(states)] * len(states) if states else None, **{"rule": "average", **given})


def scale(state: AdapterState, factor: float, **given: Any) -> Result:
    """An adapter times a number; what else may be given is that of `add`."""
    return add([state], [factor], **{"rule": "scale", **given})


def negate(state: AdapterState, **given: Any) -> Result:
    """An adapter with the opposite effect: task negation (Ilharco et al. 2023, sec. 3). What else may be given is that of `add`."""
    return add([state], [-1.0], **{"rule": "negate", **given})


def _sum(terms: Sequence[tuple[Linear, float]], cut: Rule, source: str, found: list[str]) -> tuple[Module, Entry]:
    """One module of a sum."""
    check_alike([term for term, _ in terms])
    record = _richest([term for term, _ in terms])
    keys = dict.fromkeys(key for term, _ in terms for key in term.stored)
    stored = {key: promoted([term.stored[key] for term, _ in terms if key in term.stored]) for key in keys}
    if terms[0][0].kind in WHOLE:
        exact = _whole(terms)
        module = packed(record, [], exact, stored, source, found)
        return module, measured_arrays(exact, module[1])
    arrays = _added([(term.arrays, weight) for term, weight in terms])
    wide = [(term.pairs, weight) for term, weight in terms if term.pairs]
    exact_pairs = [concatenated(list(parts), [w for _, w in wide]) for parts in zip(*(pairs for pairs, _ in wide), strict=True)]
    if cut == Rule():
        pairs = [_possible(pair) for pair in exact_pairs]
        stored = {key: _kept(key, dtype, pairs, arrays) for key, dtype in stored.items()}
    else:
        pairs = best(exact_pairs, cut, parts_of(record))[0] if exact_pairs else []
    if len(terms) == 1:
        source = f"{source} of rank {record.get('rank')}, scaling {record.get('scaling', 1.0):g}"
    module = packed(record, pairs, arrays, stored, source, found)
    if not exact_pairs:
        return module, measured_arrays({"bias": sum(arrays.values(), np.zeros(()))}, module[1])
    return module, measured(exact_pairs, pairs_of(module), module[0]["rank"])


def check_alike(terms: Sequence[Linear]) -> None:
    """Raises ConfigError where modules of one name are of different kinds or layouts."""
    first, found = terms[0], []
    for other in terms[1:]:
        if other.kind != first.kind:
            found.append(f"it is {first.kind!r} in one adapter and {other.kind!r} in another")
        for key in ALIKE:
            default = 1 if key == "groups" and first.pairs and other.pairs else None
            one, two = first.record.get(key, default), other.record.get(key, default)
            if None not in (one, two) and one != two:
                found.append(f"{key} {one} and {two}")
        if first.pairs and other.pairs and len(first.pairs) != len(other.pairs):
            found.append(f"{len(first.pairs)} and {len(other.pairs)} parts")
    if found:
        raise ConfigError("; ".join(dict.fromkeys(found)))


def _richest(terms: Sequence[Linear]) -> dict[str, Any]:
    """What the records say together; a layer type other than linear counts before that, which formats say that know no other."""
    merged: dict[str, Any] = {}
    with_factors = [term for term in terms if term.pairs] or terms
    for term in with_factors:
        merged = {**term.record, **merged}
    kinds = [term.record["layer_type"] for term in with_factors if term.record.get("layer_type", "linear") != "linear"]
    return merged | ({"layer_type": kinds[0]} if kinds else {})


def _possible(pair: Pair) -> Pair:
    """A pair as it is, or of the rank that its product can have at most."""
    most = min(len(pair[0]), pair[1].shape[1])
    return svd(pair).pair(most) if pair[0].shape[1] > most else pair


def _kept(key: str, dtype: str, pairs: Sequence[Pair], arrays: Mapping[str, np.ndarray]) -> str:
    """The dtype a parameter can keep without rounding, else float32 at least."""
    if dtype not in ("bfloat16", "float16"):
        return dtype
    side = FACTORS.index(key) if key in FACTORS else None
    for array in [arrays[key]] if side is None else [pair[side] for pair in pairs]:
        if not np.array_equal(cast_array(key, array, dtype, []), array):
            return "float32"
    return dtype


def _added(terms: Sequence[tuple[Mapping[str, np.ndarray], float]]) -> dict[str, np.ndarray]:
    """The weighted sum of arrays by name; a name that is not in all of them counts as zero in the others."""
    total: dict[str, np.ndarray] = {}
    for arrays, weight in terms:
        for key, array in arrays.items():
            if array.dtype.kind != "f":
                raise ConfigError(f"its {key} is of {array.dtype} and not of floating-point numbers")
            if key in total and total[key].shape != array.shape:
                raise ConfigError(f"its {key} has the shapes {total[key].shape} and {array.shape}")
            total[key] = total[key] + weight * array if key in total else weight * array
    return total


def _whole(terms: Sequence[tuple[Linear, float]]) -> dict[str, np.ndarray]:
    """The parameters of modules kept whole, or of differences."""
    if terms[0][0].kind == "full":
        if {key for term, _ in terms for key in term.arrays} != terms[0][0].arrays.keys():
            raise ConfigError("it replaces different parameters in different adapters, which only their base could tell from no change")
        total = math.fsum(weight for _, weight in terms)
        if not math.isclose(total, 1, rel_tol=1e-9):
            cure = "loratk.lora_of with their base makes a difference of it"
            raise ConfigError(f"it replaces the base's parameters, so its weights must sum to 1, found {total:g}; {cure}")
        if len(terms) == 1:
            return terms[0][0].arrays
    return _added([(term.arrays, weight) for term, weight in terms])
