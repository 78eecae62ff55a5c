"""What an adapter shall be: rank, scaling, where it goes, and what trains."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from ..errors import ConfigError, choices, faults
from ..plugins import default_registry
from .frozen import FrozenDict, fixed, plain
from .settings import FIELDS, LayerSettings, is_integer, scaling, together_faults, value_faults
from .targets import matches, pattern_faults

BIAS_MODES = ("none", "all", "lora_only")


@dataclass(frozen=True)
class LoraConfig:
    """The settings of one adapter. Immutable and checked as a whole: ConfigError lists every fault.

    rank: columns of A, rows of B, at least 1.
    alpha: the update is scaled by alpha / rank, or alpha / sqrt(rank) if `rslora` (Kalajdzievski 2023). Finite, not negative.
    dropout: probability, in [0, 1), with which an input entry does not reach the adapter in training.
    rank_dropout: the same for each rank of each row, in methods that have ranks; module_dropout: for a whole layer's adapter, a pass.
    max_norm: the Frobenius norm to which the update of a weight is scaled down after a training step, if it is above; None for no cap.
    bias: which biases train beside the adapter: "none", "lora_only" (those of adapted layers) or "all".
    targets, exclude: which modules get an adapter; patterns as in `loratk.lora.targets`.
    rank_pattern, alpha_pattern: other ranks and alphas for the modules a pattern matches; the first that matches counts.
    layer_pattern: other settings for the modules a pattern matches: a dict of some of the fields of `LayerSettings`. The first pattern
    that matches counts, `rank_pattern` and `alpha_pattern` before it. With another method, `options` and `init` start from its own.
    share: the modules a pattern matches use the adapter of another one of their shape and settings: {pattern: path of the other}.
    method: a registered method; `options` are that method's own.
    init: a registered initialisation, or a dict of its "name" and options; None for the method's own.
    seed: of the initial values and of dropout. Each layer draws from a generator of its own, made from seed and name.
    """

    rank: int = 8
    alpha: float = 8.0
    dropout: float = 0.0
    rank_dropout: float = 0.0
    module_dropout: float = 0.0
    max_norm: float | None = None
    bias: str = "none"
    targets: tuple[str, ...] = ("all-linear",)
    exclude: tuple[str, ...] = ()
    rank_pattern: Mapping[str, int] = FrozenDict()
    alpha_pattern: Mapping[str, float] = FrozenDict()
    layer_pattern: Mapping[str, Mapping[str, Any]] = FrozenDict()
    share: Mapping[str, str] = FrozenDict()
    method: str = "lora"
    options: Mapping[str, Any] = FrozenDict()
    init: str | Mapping[str, Any] | None = None
    rslora: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for field in fields(self):
            object.__setattr__(self, field.name, _normal(field.name, getattr(self, field.name)))
        found = list(self._faults())
        if found:
            raise ConfigError(faults("This LoraConfig makes no sense:", found))
        for name in ("alpha", "dropout", "rank_dropout", "module_dropout"):
            object.__setattr__(self, name, float(getattr(self, name)))
        object.__setattr__(self, "alpha_pattern", FrozenDict({k: float(v) for k, v in self.alpha_pattern.items()}))

    def _faults(self) -> Iterator[str]:
        for name in FIELDS:
            yield from value_faults(name, getattr(self, name))
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
        for name, field in (("rank_pattern", "rank"), ("alpha_pattern", "alpha")):
            patterns = getattr(self, name)
            if not isinstance(patterns, Mapping):
                yield f"{name} must map patterns to numbers, found {patterns!r}"
                continue
            for pattern, value in patterns.items():
                yield from pattern_faults(name, pattern)
                yield from value_faults(field, value, f"{name}[{pattern!r}]")
        if not isinstance(self.share, Mapping):
            yield f"share must map patterns to the paths of modules, found {self.share!r}"
        else:
            for pattern, path in self.share.items():
                yield from pattern_faults("share", pattern)
                if not isinstance(path, str) or not path:
                    yield f"share[{pattern!r}] must be the path of a module, found {path!r}"
        if not is_integer(self.seed) or not 0 <= self.seed < 2**64:
            yield f"seed must be an integer in [0, 2**64), found {self.seed!r}"
        registry = default_registry()
        yield from together_faults(self._own(), registry)
        if not isinstance(self.layer_pattern, Mapping):
            yield f"layer_pattern must map patterns to settings, found {self.layer_pattern!r}"
            return
        for pattern, values in self.layer_pattern.items():
            where = f"layer_pattern[{pattern!r}]"
            yield from pattern_faults("layer_pattern", pattern)
            if not isinstance(values, Mapping) or not values:
                yield f"{where} must map some of {choices(FIELDS)} to values, found {values!r}"
            elif unknown := [key for key in values if key not in FIELDS]:
                yield f"{where} has no setting {choices(map(str, unknown))}; a layer's settings: {choices(FIELDS)}"
            else:
                for name, value in values.items():
                    yield from value_faults(name, value, f"{where}: {name}")
                yield from together_faults(self._joined(values), registry, f"{where}: ")

    def _own(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in FIELDS}

    def _joined(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The config's own settings with those of a pattern: another method starts from its own options and init."""
        own = self._own()
        if values.get("method", self.method) != self.method:
            own |= {"options": FrozenDict(), "init": None}
        return own | dict(values)

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
        return scaling(rank, alpha, self.rslora)

    def layer(self, *names: str, linear: bool = False) -> LayerSettings:
        """The settings for the module of that dotted name; for a column block of its own name and its module's. `linear`: see `matches`."""
        values = self._joined(_of_first(self.layer_pattern, names, linear, {}))
        rank, alpha = (_of_first(getattr(self, f"{name}_pattern"), names, linear, values[name]) for name in ("rank", "alpha"))
        return LayerSettings(**values | {"rank": int(rank), "alpha": float(alpha)})

    def rank_of(self, *names: str, linear: bool = False) -> int:
        """The rank for the module, or column block, as in `layer`."""
        return self.layer(*names, linear=linear).rank

    def alpha_of(self, *names: str, linear: bool = False) -> float:
        """The alpha for the module, or column block, as in `layer`."""
        return self.layer(*names, linear=linear).alpha

    def validate(self, d: int, k: int, name: str = "", *others: str, linear: bool = False) -> None:
        """Raise ConfigError if the rank for a (d, k) weight is above what the method takes, mostly min(d, k): it would add nothing.

        The weight's names decide about its rank, as in `rank_of`.
        """
        _check_size(d, k)
        settings = self.layer(name, *others, linear=linear)
        limit = default_registry().method(settings.method).rank_limit(d, k, settings.options)
        if limit is not None and settings.rank > limit:
            what = f"min(d, k) = {limit}" if limit == min(d, k) else f"{limit}, the most that {settings.method!r} can use"
            raise ConfigError(
                f"Rank {settings.rank} is above {what} of the ({d}, {k}) weight"
                f"{f' of {name!r}' if name else ''}; choose at most {limit}, by rank_pattern for single layers."
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
        return {field.name: plain(getattr(self, field.name)) for field in fields(self)}

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


def _normal(name: str, value: Any) -> Any:
    """A field's value as one that cannot change, patterns as tuples, NumPy's numbers as Python's; what is none of this as it is."""
    if name in ("targets", "exclude"):
        return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value
    if isinstance(value, Mapping):
        sort = name in ("options", "init")  # the order of patterns counts, that of options does not
        items = {key: _normal("options", item) for key, item in (sorted(value.items(), key=str) if sort else value.items())}
        return fixed(items)
    return value.item() if isinstance(value, (np.integer, np.floating, np.bool_)) else value


def _of_first(patterns: Mapping[str, Any], names: tuple[str, ...], linear: bool, otherwise: Any) -> Any:
    """The value of the first pattern that matches any of the names."""
    return next((value for pattern, value in patterns.items() if any(matches(pattern, name, linear=linear) for name in names)), otherwise)
