"""What is in a model just now, as data: which adapters, where, and whether all layers are of one mind."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from .layer import LoraLayer

if TYPE_CHECKING:
    from .model import LoraModel

IRREGULAR = "irregular"
"""What stands for a value that differs from layer to layer; `ModelStatus.irregular` says where."""


@dataclass(frozen=True)
class PartStatus:
    """One adapter on one layer or column block. `trainable` is None where it has nothing that could train."""

    adapter: str
    block: str
    method: str
    rank: int
    alpha: float
    scaling: float
    parameters: int
    trainable: bool | str | None
    dtypes: tuple[str, ...]
    backend: str


@dataclass(frozen=True)
class LayerStatus:
    """One layer: its adapters, and what acts. `active` and `merged` map names to weights."""

    name: str
    layer_type: str
    shape: tuple[int, int] | None
    dtype: str
    backend: str
    enabled: bool
    active: dict[str, float]
    merged: dict[str, float]
    parts: tuple[PartStatus, ...]

    @property
    def adapters(self) -> tuple[str, ...]:
        """The names of the layer's adapters."""
        return tuple(dict.fromkeys(part.adapter for part in self.parts))


@dataclass(frozen=True)
class AdapterStatus:
    """One adapter over all its layers; `active` and `merged` are its weight, None where it is not, "irregular" where layers differ."""

    name: str
    methods: tuple[str, ...]
    ranks: tuple[int, ...]
    layers: int
    parameters: int
    trainable: bool | str | None
    active: float | str | None
    merged: float | str | None
    dtypes: tuple[str, ...]
    backends: tuple[str, ...]


@dataclass(frozen=True)
class ModelStatus:
    """A whole model. `irregular` lists by name what differs between layers that should be alike; it is empty in a sound model."""

    base: str
    enabled: bool | str
    adapters: dict[str, AdapterStatus]
    layers: dict[str, LayerStatus]
    base_parameters: int
    irregular: tuple[str, ...]

    @property
    def active(self) -> dict[str, float | str]:
        """The active adapters and their weights."""
        return {name: adapter.active for name, adapter in self.adapters.items() if adapter.active is not None}

    @property
    def merged(self) -> dict[str, float | str]:
        """The merged adapters and their weights."""
        return {name: adapter.merged for name, adapter in self.adapters.items() if adapter.merged is not None}

    def to_dict(self) -> dict[str, Any]:
        """All of it as dicts, lists and numbers, as JSON has them."""
        return asdict(self)


def layer_status(layer: LoraLayer, name: str) -> LayerStatus:
    """The status of one layer."""
    kind, parts = layer.layer_type, []
    weight = None if kind is None else kind.weight(layer.base)
    for adapter in layer.names():
        held = layer.adapter(adapter)
        for block, part in held.blocks().items():
            of = part.tensors().values()
            dtypes = tuple(sorted({str(value.dtype) for value in of if value.dtype.kind == "f"}))
            trains = one({value.requires_grad for value in of if value.dtype.kind == "f" and value is not None})
            first = next(iter(of))
            sizes = part.rank, part.alpha, part.scaling, part.count()
            parts.append(PartStatus(adapter, block, part.method.name, *sizes, trains, dtypes, first.backend.name))
        if held.bias is not None:
            of_bias = held.bias.requires_grad, (str(held.bias.dtype),), held.bias.backend.name
            parts.append(PartStatus(adapter, "", "bias", 0, 0.0, 1.0, held.bias.size, *of_bias))
    target = weight if weight is not None else layer.base_bias()
    return LayerStatus(
        name,
        "" if kind is None else kind.name,
        None if kind is None else kind.shape(layer.base),
        "" if target is None else str(target.dtype),
        layer.base.backend.name,
        layer.enabled,
        dict(layer.active),
        dict(layer.merged or {}),
        tuple(parts),
    )


def one(values: Iterable[Any]) -> Any:
    """The one value there is, None for none, "irregular" for several."""
    found = list(dict.fromkeys(values))
    return None if not found else found[0] if len(found) == 1 else IRREGULAR


def model_status(model: "LoraModel") -> ModelStatus:
    """The status of a whole model."""
    layers = {name: layer_status(layer, name) for name, layer in model.layers.items()}
    irregular: list[str] = []
    adapters = {name: _adapter(name, layers, irregular) for name in model.adapters}
    enabled = one([model.enabled, *(layer.enabled for layer in layers.values())])
    if enabled == IRREGULAR:
        off = [name for name, layer in layers.items() if layer.enabled != model.enabled]
        irregular.append(f"the adapters are switched {'on' if model.enabled else 'off'}, but not those of {_listed(off)}")
    strangers = [(name, other) for name, layer in layers.items() for other in layer.adapters if other not in adapters]
    irregular += [f"layer {name!r} has an adapter {other!r} that the model does not know" for name, other in strangers]
    count = sum(parameter.size for parameter in model.base_parameters().values())
    return ModelStatus(type(model.base).__name__, enabled, adapters, layers, count, tuple(irregular))


def _adapter(name: str, layers: dict[str, LayerStatus], irregular: list[str]) -> AdapterStatus:
    mine = {where: layer for where, layer in layers.items() if name in layer.adapters}
    parts = [(where, part) for where, layer in mine.items() for part in layer.parts if part.adapter == name]
    trains = one(part.trainable for _, part in parts)
    if trains == IRREGULAR:
        irregular.append(
            f"adapter {name!r} trains in part: it is frozen in {_listed([where for where, part in parts if not part.trainable])}"
        )
    weights: list[float | str | None] = []
    for what in ("active", "merged"):
        by_layer = {where: getattr(layer, what).get(name) for where, layer in mine.items()}
        weights.append(one(by_layer.values()))
        if weights[-1] == IRREGULAR:
            told = ", ".join(f"{where!r}: {'not' if weight is None else weight}" for where, weight in by_layer.items())
            irregular.append(f"adapter {name!r} is {what} with different weights ({told})")
    dtypes = tuple(sorted({dtype for _, part in parts for dtype in part.dtypes}))
    backends = tuple(sorted({part.backend for _, part in parts}))
    for what, values in (("dtypes", dtypes), ("backends", backends)):
        if len(values) > 1:
            irregular.append(f"adapter {name!r} has parts of different {what}: {', '.join(values)}")
    methods = tuple(sorted({part.method for _, part in parts}))
    ranks = tuple(sorted({part.rank for _, part in parts if part.rank}))
    count = sum(part.parameters for _, part in parts)
    return AdapterStatus(name, methods, ranks, len(mine), count, trains, weights[0], weights[1], dtypes, backends)


def _listed(names: list[str]) -> str:
    return ", ".join(map(repr, dict.fromkeys(names)))
