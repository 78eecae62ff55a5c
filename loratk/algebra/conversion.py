"""Any method as plain LoRA: exactly where its update is a product of factors, else the nearest of a rank, with the error of each."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np

from ..errors import ConfigError, LoratkError, faults
from ..exchange import AdapterState, Base
from ..exchange.base import opened_base
from ..exchange.factors import Pair, frobenius
from ..exchange.factors import norm as norm_of
from ..plugins import Registry, default_registry
from .certificate import Certificate, Entry, measured, measured_arrays
from .exact import Exact
from .lineage import metadata_of
from .linear import BESIDE, FACTORS, WHOLE, Module, finished, packed, pairs_of, parts_of, promoted, stored_as
from .randomised import best_of, distance
from .ranks import Rule
from .result import Result, Track, rules_for, untracked
from .rounding import svd
from .truncation import best


def lora_of(
    state: AdapterState,
    *,
    base: str | Path | Base | None = None,
    rank: int | None = None,
    ratio: float | None = None,
    energy: float | None = None,
    error: float | None = None,
    patterns: Mapping[str, Rule | None] | None = None,
    differences: bool = False,
    seed: int = 0,
    name: str | None = None,
    registry: Registry | None = None,
    track: Track = untracked,
) -> Result:
    """An adapter with each module of another method than LoRA as plain LoRA, alpha = rank and scaling 1, in float32 at least.

    An update that is a product of factors (LoHa, LoKr, VeRA, ...) is exact with no rule; one that is not (DoRA, IA3) is the nearest of the
    rank that the rule needs, without one of the method's own, by singular values or a random sketch drawn by `seed`. `patterns` have
    rules of their own; None leaves a module as it is. Biases stay, and what the method does to them is added. LoRA itself, biases and whole
    modules stay; with `differences` modules that replace the base's become differences to it, which can be added. `base` is needed where
    an update depends on the base's weight. Raises ConfigError that lists each module for which something is missing.
    """
    registry = registry or default_registry()
    rule, found = Rule(rank, ratio, energy, error), list[str]()
    modules: dict[str, Module] = {}
    entries: dict[str, Entry] = {}
    with opened_base(base, registry.stores) as opened:
        converter = _Converter(Exact(state, registry, opened), seed)
        paths = [path for path in converter.exact.modules if not _stays(state.modules[path], converter.exact.held[path])]
        rules = rules_for(paths, rule, patterns or {})
        modules = {path: (dict(state.modules[path]), held) for path, held in converter.exact.held.items()}
        for path in track(paths, "converting"):
            faulty: list[str] = []
            try:
                if (chosen := rules[path]) is not None:
                    modules[path], entries[path] = converter.lora(path, chosen, faulty)
            except LoratkError as fault:
                faulty.append(str(fault))
            found += [f"module {path!r} ({state.modules[path]['method']}): {fault}" for fault in faulty]
        for path in [path for path, record in state.modules.items() if differences and record["method"] == "full"]:
            try:
                modules[path], entries[path] = converter.difference(path)
            except LoratkError as fault:
                found.append(f"module {path!r} (full): {fault}")
    if found:
        raise ConfigError(faults(f"adapter {state.name!r} cannot be made plain LoRA:", found))
    told = {key: value for key, value in vars(rule).items() if value is not None}
    metadata, _ = metadata_of([state], "lora_of", methods=sorted({state.modules[path]["method"] for path in entries}), **told)
    return Result(finished(state, modules, name or state.name, metadata), Certificate(entries))


def _stays(record: Mapping[str, Any], held: Mapping[str, np.ndarray]) -> bool:
    """Whether a module is plain LoRA, a bias or a whole module."""
    return record["method"] in (*WHOLE, "bias") or (record["method"] == "lora" and not held.keys() - {*FACTORS, *BESIDE})


class _Converter:
    """Makes LoRA of the modules of an adapter."""

    def __init__(self, exact: Exact, seed: int) -> None:
        self.exact, self._seed = exact, seed

    def lora(self, path: str, rule: Rule, found: list[str]) -> tuple[Module, Entry]:
        """A module as LoRA, and its entry."""
        own, held = self.exact.state.modules[path], self.exact.held[path]
        record, update = self.exact.update(path)
        arrays = {key: held[key].astype(np.float64) for key in BESIDE if key in held}
        if "lora_bias" in arrays:
            arrays["lora_bias"] *= float(own["scaling"])
        if (change := self.exact.bias(path)) is not None:
            arrays["bias"] = arrays.get("bias", 0.0) + change
        dtype = promoted(["float32", *(array.dtype.name for array in held.values() if array.dtype.kind == "f")])
        dtypes = dict.fromkeys([*FACTORS, *arrays], "float32" if dtype == "float16" else dtype)
        matrices = None if isinstance(update, list) else self._parts(record, update)
        if isinstance(update, list):
            pairs = [_possible(pair) for pair in update] if rule == Rule() else best(update, rule, parts_of(record))[0]
        else:
            if rule == Rule() and "rank" not in own:
                raise ConfigError("its update is of no low rank; say which rank to make it (rank, energy or error)")
            chosen = Rule(own["rank"]) if rule == Rule() else rule
            rng = np.random.default_rng([self._seed, crc32(path.encode())])
            pairs = best_of(matrices or [], chosen, rng, parts_of(record))[0]
        made = packed(record, pairs, arrays, dtypes, f"made of {own['method']}", found)
        if matrices is None:
            return made, measured(update if isinstance(update, list) else [], pairs_of(made), made[0]["rank"])
        return made, _entry(matrices, pairs_of(made), made[0]["rank"])

    def difference(self, path: str) -> tuple[Module, Entry]:
        """A module that replaces the base's as the difference to it, in float32 at least."""
        record, held = self.exact.state.modules[path], self.exact.held[path]
        own = self.exact.replaced(path, held, record)
        change = {key: array.astype(np.float64) - own[key] for key, array in held.items()}
        dtypes = {key: promoted(["float32", array.dtype.name]) for key, array in held.items()}
        found: list[str] = []
        made = stored_as({**record, "method": "diff"}, change, dtypes, found)
        if found:
            raise ConfigError("; ".join(found))
        return made, measured_arrays(change, made[1])

    def _parts(self, record: Mapping[str, Any], matrix: np.ndarray) -> list[np.ndarray]:
        return list(matrix) if "experts" in record else np.split(matrix, parts_of(record), axis=1)


def _possible(pair: Pair) -> Pair:
    most = min(len(pair[0]), pair[1].shape[1])
    return svd(pair).pair(most) if pair[0].shape[1] > most else pair


def _entry(matrices: list[np.ndarray], pairs: list[Pair], rank: int) -> Entry:
    norm = float(np.hypot.reduce([frobenius(matrix) for matrix in matrices]))
    apart = float(np.hypot.reduce([distance(matrix, pair) for matrix, pair in zip(matrices, pairs, strict=True)]))
    return Entry(rank, apart / norm if norm else 0.0, (norm_of(pairs) / norm) ** 2 if norm else 1.0, norm)
