"""What an adapter shall be: rank, scaling, where it goes, and what trains."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, NoReturn

import numpy as np

from ..errors import ConfigError, choices, faults
from ..plugins import default_registry
from .targets import matches, pattern_faults

BIAS_MODES = ("none", "all", "lora_only")
FLOAT32_MAX = 3.4028234663852886e38


class FrozenDict(dict[str, Any]):
    """A dict that cannot be changed, and so can be hashed. Two are equal if their order is too: the first pattern that matches counts."""

    def _refuse(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise TypeError("A LoraConfig cannot be changed; make another with replace().")

    __setitem__ = __delitem__ = __ior__ = _refuse
    clear = pop = popitem = setdefault = update = _refuse

    def __eq__(self, other: object) -> bool:
        return list(self.items()) == list(other.items()) if isinstance(other, FrozenDict) else dict(self) == other

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(tuple(self.items()))

    def __reduce__(self) -> tuple[Any, ...]:
        return FrozenDict, (dict(self),)


def _fixed(value: Any) -> Any:
    """A value as one that cannot change, its lists and dicts too."""
    if isinstance(value, Mapping):
        return FrozenDict({key: _fixed(item) for key, item in value.items()})
    return tuple(map(_fixed, value)) if isinstance(value, (list, tuple)) else value


def _plain(value: Any) -> Any:
    """The same as lists and dicts."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return list(map(_plain, value)) if isinstance(value, (list, tuple)) else value


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


@dataclass(frozen=True)
class LoraConfig:
    """The settings of one adapter. Immutable and checked as a whole: ConfigError lists every fault.

    rank: columns of A, rows of B, at least 1.
    alpha: the update is scaled by alpha / rank, or alpha / sqrt(rank) if `rslora` (Kalajdzievski 2023). Finite, not negative.
    dropout: probability, in [0, 1), with which an input entry does not reach the adapter in training.
    bias: which biases train beside the adapter: "none", "lora_only" (those of adapted layers) or "all".
    targets, exclude: which modules get an adapter; patterns as in `loratk.lora.targets`.
    rank_pattern, alpha_pattern: other ranks and alphas for the modules a pattern matches; the first that matches counts.
    method: a registered method; `options` are that method's own.
    seed: of the initial values and of dropout. Each layer draws from a generator of its own, made from seed and name.
    """

    rank: int = 8
    alpha: float = 8.0
    dropout: float = 0.0
    bias: str = "none"
    targets: tuple[str, ...] = ("all-linear",)
    exclude: tuple[str, ...] = ()
    rank_pattern: Mapping[str, int] = FrozenDict()
    alpha_pattern: Mapping[str, float] = FrozenDict()
    method: str = "lora"
    options: Mapping[str, Any] = FrozenDict()
    rslora: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("rank", "alpha", "dropout", "seed"):
            value = getattr(self, name)
            object.__setattr__(self, name, value.item() if isinstance(value, (np.integer, np.floating)) else value)
        for name in ("targets", "exclude"):
            value = getattr(self, name)
            object.__setattr__(self, name, (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value)
        for name in ("rank_pattern", "alpha_pattern", "options"):
            value = getattr(self, name)
            if isinstance(value, Mapping):
                object.__setattr__(self, name, _fixed(dict(sorted(value.items(), key=str)) if name == "options" else value))
        found = list(self._faults())
        if found:
            raise ConfigError(faults("This LoraConfig makes no sense:", found))
        object.__setattr__(self, "alpha", float(self.alpha))
        object.__setattr__(self, "alpha_pattern", FrozenDict({k: float(v) for k, v in self.alpha_pattern.items()}))
        object.__setattr__(self, "dropout", float(self.dropout))

    def _faults(self) -> Any:
        yield from _rank_faults("rank", self.rank)
        yield from _alpha_faults("alpha", self.alpha)
        if not _number(self.dropout) or not 0 <= self.dropout < 1:
            yield f"dropout must be a number in [0, 1), found {self.dropout!r}"
        if self.bias not in BIAS_MODES:
            yield f"bias must be one of {choices(BIAS_MODES)}, found {self.bias!r}"
        for name in ("targets", "exclude"):
            patterns = getattr(self, name)
            if not isinstance(patterns, tuple):
                yield f"{name} must be a pattern or a list of patterns, found {patterns!r}"
                continue
            for pattern in patterns:
                yield from pattern_faults(name, pattern)
        if self.targets == ():
            yield "targets must name at least one pattern, such as 'all-linear'"
        for name, check in (("rank_pattern", _rank_faults), ("alpha_pattern", _alpha_faults)):
            patterns = getattr(self, name)
            if not isinstance(patterns, Mapping):
                yield f"{name} must map patterns to numbers, found {patterns!r}"
                continue
            for pattern, value in patterns.items():
                yield from pattern_faults(name, pattern)
                yield from check(f"{name}[{pattern!r}]", value)
        if not isinstance(self.rslora, bool):
            yield f"rslora must be True or False, found {self.rslora!r}"
        if not _integer(self.seed) or not 0 <= self.seed < 2**64:
            yield f"seed must be an integer in [0, 2**64), found {self.seed!r}"
        methods = default_registry().methods
        if not isinstance(self.method, str) or self.method not in methods:
            yield f"method must be one of {choices(methods)}, found {self.method!r}; a plugin that provides it may not be installed"
        elif not isinstance(self.options, Mapping):
            yield f"options must map names to values, found {self.options!r}"
        else:
            yield from methods[self.method].option_faults(self.options)

    # Presets, as the Java module has them

    @classmethod
    def default(cls, rank: int, **others: Any) -> "LoraConfig":
        """alpha = rank, so scaling 1."""
        return cls(rank=rank, alpha=rank, **others)

    @classmethod
    def low_rank(cls, **others: Any) -> "LoraConfig":
        """Rank 4, alpha 8."""
        return cls(rank=4, alpha=8, **others)

    @classmethod
    def medium_rank(cls, **others: Any) -> "LoraConfig":
        """Rank 16, alpha 32."""
        return cls(rank=16, alpha=32, **others)

    @classmethod
    def high_rank(cls, **others: Any) -> "LoraConfig":
        """Rank 64, alpha 128."""
        return cls(rank=64, alpha=128, **others)

    # What it says about a layer

    @property
    def scaling(self) -> float:
        """What multiplies A B in a layer that no pattern matches."""
        return self.scaling_of(self.rank, self.alpha)

    def scaling_of(self, rank: int, alpha: float) -> float:
        """alpha / rank, or alpha / sqrt(rank) with `rslora`."""
        return alpha / math.sqrt(rank) if self.rslora else alpha / rank

    def rank_of(self, *names: str, linear: bool = False) -> int:
        """The rank for the module of that dotted name; for a column block of its own name and its module's. `linear`: see `matches`."""
        return int(_of_first(self.rank_pattern, names, linear, self.rank))

    def alpha_of(self, *names: str, linear: bool = False) -> float:
        """The alpha for the module, or column block, as in `rank_of`."""
        return _of_first(self.alpha_pattern, names, linear, self.alpha)

    def validate(self, d: int, k: int, name: str = "", *others: str, linear: bool = False) -> None:
        """Raise ConfigError if the rank for a (d, k) weight is above min(d, k): it would cost more and add nothing.

        The weight's names decide about its rank, as in `rank_of`.
        """
        _check_size(d, k)
        rank = self.rank_of(name, *others, linear=linear)
        if rank > min(d, k):
            raise ConfigError(
                f"Rank {rank} is above min(d, k) = {min(d, k)} of the ({d}, {k}) weight"
                f"{f' of {name!r}' if name else ''}; choose at most {min(d, k)}, by rank_pattern for single layers."
            )

    def reduction(self, d: int, k: int) -> float:
        """The share of a (d, k) weight's numbers that a LoRA adapter does not train: 1 - rank (d + k) / (d k). May be negative."""
        _check_size(d, k)
        return 1 - self.rank * (d + k) / (d * k)

    # Copies and JSON

    def replace(self, **changes: Any) -> "LoraConfig":
        """A copy with some fields changed, checked again. Raises ConfigError for an unknown field."""
        self._check_names(changes)
        return replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain Python values that JSON can hold."""
        return {field.name: _plain(getattr(self, field.name)) for field in fields(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "LoraConfig":
        """The config of a dict; fields left out have their defaults. Raises ConfigError for unknown fields and bad values."""
        cls._check_names(values)
        return cls(**values)

    def to_json(self) -> str:
        """The config as JSON."""
        return json.dumps(self.to_dict(), indent=2)

    @classmethod
    def from_json(cls, text: str) -> "LoraConfig":
        """The config of a JSON text. Raises ConfigError."""
        try:
            values = json.loads(text)
        except ValueError as error:
            raise ConfigError(f"This is not JSON: {error}.") from error
        if not isinstance(values, dict):
            raise ConfigError(f"The JSON of a LoraConfig must be an object, found {type(values).__name__}.")
        return cls.from_dict(values)

    @classmethod
    def _check_names(cls, values: Mapping[str, Any]) -> None:
        known = {field.name for field in fields(cls)}
        unknown = [name for name in values if name not in known]
        if unknown:
            raise ConfigError(f"A LoraConfig has no field {choices(map(str, unknown))}. Its fields: {choices(known)}.")


def _check_size(d: int, k: int) -> None:
    if min(d, k) < 1:
        raise ConfigError(f"A weight that can have an adapter is (d, k) with d and k of at least 1, found ({d}, {k}).")


def _rank_faults(name: str, value: Any) -> Any:
    if not _integer(value) or not 1 <= value < 2**31:
        yield f"{name} must be an integer of at least 1 (and below 2**31), found {value!r}"


def _alpha_faults(name: str, value: Any) -> Any:
    if not _number(value) or not 0 <= value <= FLOAT32_MAX:
        yield f"{name} must be a finite number of at least 0 that float32 can hold, found {value!r}"


def _of_first(patterns: Mapping[str, float], names: tuple[str, ...], linear: bool, otherwise: float) -> float:
    """The value of the first pattern that matches any of the names."""
    return next((value for pattern, value in patterns.items() if any(matches(pattern, name, linear=linear) for name in names)), otherwise)
