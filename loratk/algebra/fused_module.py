"""One module of several adapters made one: its weight, what lies beside it, and its certificates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import ConfigError
from .certificate import Entry, measured_arrays
from .deltas import Delta, Effect, no_delta
from .exact import Exact, as_torch
from .fused import HELD
from .fusing import Fusing, entry, matrix_of, sum_entry, sum_of
from .layout import merged_record, misfits, torch_shape
from .linear import FACTORS, Module, packed, pairs_of, stored_as

Maybe = Sequence[Effect | None]
Arrays = dict[str, np.ndarray]
Fused = tuple[Module, Entry, Entry]


@dataclass(frozen=True, eq=False)
class ModuleFusing:
    """Modules made one under a rule. dense: what has a weight stays a matrix. exact: one of the adapters, which knows the base."""

    fusing: Fusing
    dense: bool
    exact: Exact

    def misfits(self, effects: Maybe, weights: Sequence[float]) -> list[str]:
        """Why a module cannot be made one, a line each: it lies differently, or the rule does not take the weights."""
        rule = self.fusing.rule
        wrong = rule.weight_faults(weights, self.fusing.options)
        return [
            *misfits([effect for effect in effects if effect is not None]),
            *(f"the merge rule {rule.name!r}: {line}" for line in wrong),
        ]

    def of(self, name: str, effects: Maybe, weights: Sequence[float], found: list[str]) -> Fused:
        """A module without misfits, its certificate against what the rule exactly gives, and that against the weighted sum of the adapters.

        Numbers that are too large for the dtype are added to `found`. Raises LoratkError for what cannot be written so.
        """
        there = [effect for effect in effects if effect is not None]
        kinds = {effect.kind for effect in there}
        deltas = _deltas(effects)
        kind = "full" if kinds == {"full"} else "diff" if kinds & {"full", "diff"} or (self.dense and deltas) else "lora"
        arrays = _arrays(effects, joined=kind != "lora")
        merged = {key: self.fusing.array(held, weights, (name, key)) for key, held in arrays.items()}
        sums = {key: _sum(held, weights) for key, held in arrays.items()}
        if deltas and kind == "lora":
            return self._factors(name, there, deltas, weights, merged, found)
        return self._arrays(name, kind, there, (deltas, weights), merged, sums, found)

    def _factors(
        self, name: str, there: Sequence[Effect], deltas: list[list[Delta]], weights: Sequence[float], arrays: Arrays, found: list[str]
    ) -> Fused:
        """A module with an update as LoRA."""
        parts, record = next(effect.parts for effect in there if effect.deltas), merged_record(there)
        results = [self.fusing.exactly(each, weights, parts, (name, str(place)), HELD // len(deltas)) for place, each in enumerate(deltas)]
        limit = sum(effect.rank for effect in there)
        pairs = self.fusing.factors(results, parts, limit, (name,))
        dtypes = dict.fromkeys((*FACTORS, *arrays), _dtype(there))
        module = packed(record, pairs, arrays, dtypes, f"{self.fusing.rule.name} of {len(weights)} adapters", found)
        got, rank = pairs_of(module), int(module[0]["rank"])
        return module, entry(results, got, parts, rank), sum_entry(deltas, weights, got, parts, rank)

    def _arrays(
        self,
        name: str,
        kind: str,
        there: Sequence[Effect],
        weighted: tuple[list[list[Delta]], Sequence[float]],
        exact: Arrays,
        sums: Arrays,
        found: list[str],
    ) -> Fused:
        """A module of whole arrays: a bias alone, or a weight that is kept dense."""
        deltas, weights = weighted
        record = {"method": "bias"} if kind == "lora" else {"method": kind, "orientation": "torch"}
        if deltas:
            shape, turned = _stored_shape(name, there, deltas[0][0])
            parts = next(effect.parts for effect in there if effect.deltas)

            def laid(matrix: np.ndarray) -> np.ndarray:
                return as_torch(matrix, shape, name) if turned else matrix.reshape(shape)

            exact = exact | {"weight": laid(matrix_of(self.fusing.exactly(deltas[0], weights, parts, (name, "0"))))}
            sums = sums | {"weight": laid(sum_of(deltas[0], weights, 0, deltas[0][0].k))}
            if not turned:
                del record["orientation"]
        own = self.exact.replaced(name, exact, there[0].record) if kind == "full" else {key: np.zeros(()) for key in exact}
        dtypes = dict.fromkeys(exact, _dtype(there))
        module = stored_as(record, {key: array + own[key] for key, array in exact.items()}, dtypes, found)
        got = {key: array.astype(np.float64) - own[key] for key, array in module[1].items()}
        return module, measured_arrays(exact, got), measured_arrays(sums, got)


def _deltas(effects: Maybe) -> list[list[Delta]]:
    """The deltas of each expert of all adapters, zeros for one that has none; [] where none has."""
    first = next((effect for effect in effects if effect is not None and effect.deltas), None)
    if first is None:
        return []
    zero = no_delta(first.deltas[0].d, first.deltas[0].k, first.parts)
    return [
        [effect.deltas[place] if effect is not None and effect.deltas else zero for effect in effects] for place in range(len(first.deltas))
    ]


def _arrays(effects: Maybe, *, joined: bool) -> dict[str, list[np.ndarray | None]]:
    """What is added to each parameter beside, by each adapter. `joined`, or where an adapter has a bias, lora_bias is one too."""
    held = [{} if effect is None else effect.arrays for effect in effects]
    if joined or any("bias" in arrays for arrays in held):
        held = [{"bias" if key == "lora_bias" else key: array for key, array in arrays.items()} for arrays in held]
    return {key: [arrays.get(key) for arrays in held] for key in dict.fromkeys(key for arrays in held for key in arrays)}


def _sum(held: Sequence[np.ndarray | None], weights: Sequence[float]) -> np.ndarray:
    return np.asarray(sum(weight * array for array, weight in zip(held, weights, strict=True) if array is not None))


def _dtype(there: Sequence[Effect]) -> str:
    return "float64" if any(effect.wide for effect in there) else "float32"


def _stored_shape(name: str, there: Sequence[Effect], like: Delta) -> tuple[tuple[int, ...], bool]:
    """The shape of a weight that is kept dense, and whether that is in torch's order."""
    for effect in there:
        if effect.shape:
            return effect.shape, effect.record.get("orientation") == "torch"
    if any(len(effect.deltas) > 1 for effect in there):
        raise ConfigError("it is a stack of experts, which cannot be kept dense; ask for a rank")
    return torch_shape(merged_record(there), name, like.d, like.k), True
