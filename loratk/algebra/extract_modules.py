"""What a tuned checkpoint adds to its base in one module: the factors nearest to the difference of its weight, or its arrays whole."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from zlib import crc32

import numpy as np

from ..errors import AnomalyError, ConfigError
from ..exchange.base import EMBEDDINGS, Checkpoint
from ..exchange.factors import frobenius
from ..exchange.factors import norm as norm_of
from ..exchange.plain import window_of
from .certificate import Entry
from .extract_plan import Planned
from .linear import Module, packed, pairs_of, stored_as
from .randomised import best_of, distance


@dataclass
class Extractor:
    """Two open checkpoints of one order, and how what is found is stored. `notes` collects what is worth telling."""

    base: Checkpoint
    tuned: Checkpoint
    dtype: str
    whole: str  # "full" or "diff"
    seed: int
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._old, self._new = self.base.arrays(), self.tuned.arrays()
        self._half = self.tuned.bfloat16

    def module(self, path: str, planned: Planned) -> tuple[Module, Entry] | None:
        """A module of the adapter and its entry; None where nothing changed. Raises LoratkError for what cannot be kept."""
        return self._whole(path, planned) if planned.kind == "whole" else self._factors(path, planned)

    def _factors(self, path: str, planned: Planned) -> tuple[Module, Entry] | None:
        if more := [name for parameter, name in planned.arrays.items() if parameter not in ("weight", "bias", "") and self._changed(name)]:
            raise ConfigError(f"{more[0]!r} changed beside its weight, which factors have no place for; keep the module whole (--full)")
        deltas, record = self._stack(path, planned) if planned.kind == "experts" else self._weight(path, planned.table)
        bias = self._bias(planned.arrays["bias"]) if "bias" in planned.arrays else {}
        dtypes, found = dict.fromkeys(("lora_A", "lora_B"), self.dtype) | {"bias": "float32"}, list[str]()
        if not any(delta.any() for delta in deltas):
            if not bias:
                return None
            made = packed({"method": "bias"}, [], bias, dtypes, "", found)
            return made, Entry(None, 0.0, 1.0, frobenius(bias["bias"]))
        pairs, capped = best_of(deltas, planned.rule, self._generator(path))
        made = packed(record, pairs, bias, dtypes, "extracted", found)
        if found:
            raise ConfigError("; ".join(found))
        if capped and planned.rule != type(planned.rule)(planned.rule.rank):
            self.notes.append(f"module {path!r}: its other rules ask for more than rank {planned.rule.rank}")
        numbers = sum(array.size for key, array in made[1].items() if key != "bias")
        if numbers > sum(delta.size for delta in deltas):
            self.notes.append(f"module {path!r}: rank {made[0]['rank']} takes more numbers than the weight itself; --full keeps that")
        stored = pairs_of(made)
        apart = float(np.hypot.reduce([distance(delta, pair) for delta, pair in zip(deltas, stored, strict=True)]))
        norm = float(np.hypot.reduce([frobenius(delta) for delta in deltas]))
        return made, Entry(made[0]["rank"], apart / norm, (norm_of(stored) / norm) ** 2, norm)

    def _weight(self, path: str, table: bool) -> tuple[list[np.ndarray], dict[str, Any]]:
        """The difference of a weight as it acts, (d, k), and the record of its layer."""
        old, new = self.base.weight(path), self.tuned.weight(path)
        if old.shape != new.shape:
            raise ConfigError(f"its weight acts as {old.shape} in the base and {new.shape} in the tuned checkpoint; give the order of both")
        window = window_of(self.base.shape(path), old.shape[1], self.base.order) if len(self.base.shape(path)) > 2 else ()
        if table and old.shape != self.base.shape(path):  # its name does not say that it is one
            old, new = old.T, new.T
        kind = f"conv{len(window)}d" if window else "embedding" if table else "linear"
        record = {"method": "lora", "layer_type": kind, "shape": list(old.shape), **({"kernel": list(window)} if window else {})}
        return [_difference(old, new)], record

    def _stack(self, path: str, planned: Planned) -> tuple[list[np.ndarray], dict[str, Any]]:
        old, new = (arrays[planned.arrays[""]] for arrays in (self._old, self._new))
        record = {"method": "lora", "layer_type": "linear", "shape": list(old.shape[1:]), "experts": len(old)}
        return list(_difference(old, new)), record

    def _bias(self, name: str) -> dict[str, np.ndarray]:
        change = _difference(self._old[name], self._new[name])
        return {"bias": change} if change.any() else {}

    def _whole(self, path: str, planned: Planned) -> tuple[Module, Entry] | None:
        """A module's own parameters, all of them in place of the base's, or the differences of those that changed."""
        changed = {key: name for key, name in planned.arrays.items() if name not in self._old or self._changed(name)}
        for key in [key for key, name in changed.items() if self._new.info(name)[1].kind != "f"]:
            if key == "weight":
                kind = self._new.info(changed[key])[1]
                raise ConfigError(f"its weight is of {kind}, and not of floating-point numbers; dequantise it first")
            self.notes.append(f"{changed.pop(key)!r} changed and is left out: it is of {self._new.info(planned.arrays[key])[1]}")
        if not changed:
            return None
        exact, held = {}, {}
        for key, name in (planned.arrays if self.whole == "full" else changed).items():
            if self._new.info(name)[1].kind != "f":
                continue
            new = self._new[name]
            change = _difference(self._old[name], new) if name in self._old else _finite(new).astype(np.float64)
            exact[key], held[key] = change, self._torch(path, new if self.whole == "full" else change)
        if self.whole == "diff" and planned.new:
            raise ConfigError(
                "it is in the tuned checkpoint only, so there is no difference; keep whole modules as they are (whole='full')"
            )
        dtypes = {key: self._stored(planned.arrays[key]) if self.whole == "full" else "float32" for key in held}
        found: list[str] = []
        made = stored_as({"method": self.whole, "orientation": "torch"}, held, dtypes, found)
        if found:
            raise ConfigError("; ".join(found))
        norm = float(np.hypot.reduce([frobenius(change) for change in exact.values()]))
        lost = [frobenius(held[key] - made[1][key].astype(np.float64)) for key in held]
        return made, Entry(None, float(np.hypot.reduce(lost)) / norm if norm else 0.0, 1.0, norm)

    def _torch(self, path: str, array: np.ndarray) -> np.ndarray:
        """An array of the checkpoints in torch's order, which whole modules are kept in."""
        if self.base.order == "output-first" or array.ndim < 2 or (array.ndim == 2 and path.rpartition(".")[2] in EMBEDDINGS):
            return array
        return np.ascontiguousarray(array.transpose(array.ndim - 1, array.ndim - 2, *range(array.ndim - 2)))

    def _changed(self, name: str) -> bool:
        return not np.array_equal(self._old[name], self._new[name])

    def _stored(self, name: str) -> str:
        return "bfloat16" if name in self._half else self._new.info(name)[1].name

    def _generator(self, path: str) -> np.random.Generator:
        """The same numbers for a module whatever other modules there are."""
        return np.random.default_rng([self.seed, crc32(path.encode())])


def _difference(old: np.ndarray, new: np.ndarray) -> np.ndarray:
    """new - old in float64."""
    if old.dtype.kind != "f" or new.dtype.kind != "f":
        raise ConfigError(f"it is of {old.dtype} and {new.dtype}, and not of floating-point numbers")
    return _finite(new).astype(np.float64) - _finite(old)


def _finite(array: np.ndarray) -> np.ndarray:
    if not np.isfinite(array).all():
        raise AnomalyError(f"{np.count_nonzero(~np.isfinite(array))} of its values are NaN or infinite")
    return array
