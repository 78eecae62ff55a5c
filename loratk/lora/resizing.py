"""Adapters of a model with other ranks: what training switched off cut out, or the best of a rank, in factor space.

The update stays (`compact`), or is the nearest one (`resize`), and so does its scaling: alpha changes with the rank. The new ranks stand
in the adapter's config, by exact names, and so in its file; a layer of rank 0 is excluded.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import ConfigError, StateError, faults
from ..exchange.configs import exact_pattern
from ..exchange.factors import core
from ..exchange.lowrank import truncated
from .config import LoraConfig
from .energy_rank import directions
from .parts import Part, parts_of
from .pinned import Block, pinned
from .settings import FIELDS, LayerSettings, is_integer, is_number
from .starting import all_names
from .targets import matches
from .tree import swap

if TYPE_CHECKING:
    from .adapter import LoraAdapter
    from .model import LoraModel

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Ranks:
    """The ranks of an adapter's layers and column blocks before and after; 0 where it was taken out."""

    before: Mapping[str, int]
    after: Mapping[str, int]

    @property
    def removed(self) -> tuple[str, ...]:
        """What has no adapter any more."""
        return tuple(name for name, rank in self.after.items() if not rank)


@dataclass(frozen=True)
class Change:
    """What a piece of an adapter becomes: its settings, None to take it out, and the values of its parameters, None for those it has."""

    part: Part
    settings: LayerSettings | None
    values: Arrays | None


def compact(model: "LoraModel", adapter: str) -> Ranks:
    """Cut what training switched off: see `LoraModel.compact`."""
    changes = []
    for part in parts_of(model, adapter):
        held = part.adapter
        cut = held.method.compact(_values(held)) if held.first() is None else None
        if cut is None:
            changes.append(Change(part, held.settings, None))
            continue
        values, rank = cut
        if not rank and _keeps_bias(model, adapter, part):
            values, rank = held.method.take(_zero_first(held), np.arange(1)), 1
        changes.append(Change(part, _scaled(held, rank) if rank else None, values))
    return apply(model, adapter, changes)


def resize(model: "LoraModel", adapter: str, *, rank: int | None = None, energy: float | None = None) -> Ranks:
    """Give every layer the best update of a rank: see `LoraModel.resize`."""
    found = []
    if rank is not None and not (is_integer(rank) and rank > 0):
        found.append(f"rank must be a whole number of at least 1, found {rank!r}")
    if energy is not None and not (is_number(energy) and 0 < energy <= 1):
        found.append(f"energy must be a number in (0, 1], found {energy!r}")
    changes = []
    for part in parts_of(model, adapter):
        if not found and (change := _resized(part, rank, energy)) is not None:
            changes.append(change)
        elif part.adapter.method.factors(_values(part.adapter)) is None:
            found.append(f"{part.name!r}: the update of the method {part.adapter.method.name!r} is not kept as factors")
    if found:
        raise ConfigError(faults(f"The adapter {adapter!r} cannot be resized:", found))
    return apply(model, adapter, changes)


def use_rank(model: "LoraModel", adapter: str, rank: int | None) -> None:
    """Choose how many of the first ranks act: see `LoraModel.use_rank`."""
    pieces = parts_of(model, adapter)
    if rank is not None and not (is_integer(rank) and rank > 0):
        raise ConfigError(f"rank must be a whole number of at least 1, or None for all, found {rank!r}.")
    if other := [part for part in pieces if not part.adapter.method.nested]:
        raise ConfigError(
            f"The first ranks of the method {other[0].adapter.method.name!r}, as on {other[0].name!r}, are no adapter by themselves; "
            "resize() cuts it to the best of a rank, and the method 'dylora' trains all ranks at once."
        )
    for part in pieces:
        part.adapter.rank_now = None if rank is None or rank >= part.adapter.rank else rank


def _resized(part: Part, rank: int | None, energy: float | None) -> Change | None:
    held = part.adapter
    values = _values(held)
    factors = held.method.factors(values)
    if factors is None:
        return None
    if held.method.nested and energy is None:
        kept = min(rank or held.rank_now or held.rank, held.rank)
        values = held.method.take(values, np.arange(kept))
        return Change(part, replace(held.settings, rank=kept, method="lora", options={}), values)
    stays = held.first() is None and factors[0] is values["lora_A"] and held.method.form is None
    a, b = factors
    if (first := held.first()) is not None:
        a, b = np.concatenate([a, first[0].numpy()], axis=1), np.concatenate([b, -first[1].numpy()])
    own = len(b)
    wanted = min(rank or own, part.adapter.d, part.adapter.k)
    if energy is not None:
        inner = core(a, b)
        spectrum = np.linalg.svd(inner, compute_uv=False)
        wanted = min(wanted, directions(spectrum, energy) if spectrum[0] else 1)
    if wanted < own:
        a, b = (factor.astype(held.float_dtype) for factor in truncated(a.astype(np.float64), b.astype(np.float64), wanted)[0])
    elif wanted > own and rank is not None and energy is None:
        more = held.rng.uniform(-1, 1, (held.d, wanted - own)) / held.d**0.5
        a, b = np.hstack([a, more.astype(a.dtype)]), np.vstack([b, np.zeros((wanted - own, held.k), b.dtype)])
    settings = _scaled(held, len(b))
    if not stays:
        return Change(part, replace(settings, method="lora", options={}, init=None), {"lora_A": a, "lora_B": b})
    return Change(part, settings, values | {"lora_A": a, "lora_B": b})


def apply(model: "LoraModel", adapter: str, changes: list[Change]) -> Ranks:
    """Change the pieces of an adapter, and its config with them; all or nothing."""
    model._check(adapter)
    model._no_merge("resize an adapter")
    before = {change.part.name: change.part.adapter.rank for change in changes}
    after = {change.part.name: change.settings.rank if change.settings else 0 for change in changes}
    if not any(after.values()):
        raise StateError(
            f"Nothing would be left of the adapter {adapter!r}: its whole update is 0, as before training; remove_adapter() takes it out."
        )
    config = configured(model, model.adapters[adapter], changes)
    for change in changes:
        part = change.part
        if change.settings is None:
            held = part.layer.adapter(adapter)
            delattr(held, part.block or "matrix")
            if not held.blocks() and held.bias is None:
                part.layer.remove(adapter)
            if not part.layer.names():
                model.base = swap(model.base, part.layer, part.layer.base)
        else:
            method = model.registry.method(change.settings.method)
            part.adapter.config = config
            if change.values is not None:
                part.adapter.renew(config, change.settings, method, change.values)
    model._configs[adapter] = config
    return Ranks(before, after)


def chosen(model: "LoraModel", adapter: str) -> tuple[LoraConfig, Arrays]:
    """The config and arrays to save: those of an adapter as it is, or where `use_rank` chose one, of that rank."""
    arrays, pieces = model.state(adapter), parts_of(model, adapter)
    config = model.adapters[adapter]
    if all(part.adapter.rank_now is None for part in pieces):
        return config, arrays
    blocks = []
    for part in pieces:
        held = part.adapter
        arrays |= {f"{part.name}.{key}": np.ascontiguousarray(array) for key, array in held.chosen().items()}
        blocks.append(Block(part.name, part.within, part.linear, held.rank_now or held.rank, held.alpha))
    return pinned(config, blocks, among=all_names(model)), arrays


def configured(model: "LoraModel", config: LoraConfig, changes: list[Change]) -> LoraConfig:
    """The config under which a model gets just these layers with these settings."""
    kept = {change.part.name: (change.part, change.settings) for change in changes if change.settings is not None}
    kinds = Counter((s.method, repr(s.options), repr(s.init)) for _, s in kept.values())
    common = next(s for _, s in kept.values() if (s.method, repr(s.options), repr(s.init)) == kinds.most_common(1)[0][0])
    if any(_kind(config.layer(p.name, p.within, linear=p.linear)) != _kind(s) for p, s in kept.values()):
        layers = {pattern: _without_kind(values) for pattern, values in config.layer_pattern.items() if _without_kind(values)}
        config = config.replace(method=common.method, options=common.options, init=common.init, layer_pattern=layers)
    names, blocks = all_names(model), []
    for change in changes:
        part, settings = change.part, change.settings
        rank, alpha = (settings.rank, settings.alpha) if settings else (0, 0.0)
        blocks.append(Block(part.name, part.within, part.linear, rank, alpha))
    config = pinned(config, blocks, among=names)
    if config.share:
        config = config.replace(share={pattern: path for pattern, path in config.share.items() if _meets(pattern, kept)})
    own: dict[str, dict[str, Any]] = {}
    for name, (part, settings) in kept.items():
        if config.layer(name, part.within, linear=part.linear) != settings:
            own[exact_pattern(name, names)] = {key: getattr(settings, key) for key in FIELDS}
    others = {pattern: values for pattern, values in config.layer_pattern.items() if pattern not in own}
    return config.replace(layer_pattern=own | others) if own else config


def _meets(pattern: str, kept: Mapping[str, tuple[Part, LayerSettings]]) -> bool:
    return any(matches(pattern, name, linear=part.linear) for part, _ in kept.values() for name in (part.name, part.within))


def _kind(settings: LayerSettings) -> tuple[Any, ...]:
    return settings.method, settings.options, settings.init


def _without_kind(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key not in ("method", "options", "init")}


def _values(held: "LoraAdapter") -> Arrays:
    """Copies of the method's own parameters."""
    return {name: np.array(value.numpy()) for name, value in held.own().items()}


def _scaled(held: "LoraAdapter", rank: int) -> LayerSettings:
    """The settings with another rank and the same scaling."""
    return replace(held.settings, rank=rank, alpha=held.scaling * (rank**0.5 if held.settings.rslora else rank))


def _zero_first(held: "LoraAdapter") -> Arrays:
    """The parameters with zeros in the rows of B, where nothing is switched on."""
    return {name: np.zeros_like(array) if name == "lora_B" else array for name, array in _values(held).items()}


def _keeps_bias(model: "LoraModel", adapter: str, part: Part) -> bool:
    """Whether a layer's bias trains because it has an adapter, so that it needs one to keep it."""
    return model.adapters[adapter].bias == "lora_only" and part.layer.adapter(adapter).bias is not None
