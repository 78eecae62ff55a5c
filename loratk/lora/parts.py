"""The pieces of an adapter, one for each layer or column block, with the names they go by."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import ConfigError
from .adapter import LoraAdapter
from .layer import LoraLayer

if TYPE_CHECKING:
    from .methods import Method
    from .named import NamedAdapters


@dataclass(frozen=True)
class Part:
    """One adapter on one layer or column block: its dotted name, the module's, the block's ('' for a whole layer), and what they hold."""

    name: str
    within: str
    block: str
    layer: LoraLayer
    adapter: LoraAdapter

    @property
    def linear(self) -> bool:
        """Whether the layer's type is linear, which patterns ask for."""
        return self.layer.layer_type is not None and self.layer.layer_type.linear


def parts_of(model: "NamedAdapters", adapter: str) -> list[Part]:
    """All pieces of an adapter, in the order of the model's layers."""
    return [
        Part(".".join(piece for piece in (name, block) if piece), name, block, layer, held)
        for name, layer in model.layers.items()
        if adapter in layer.names()
        for block, held in layer.adapter(adapter).blocks().items()
    ]


def single(parts: Iterable[Part]) -> list[Part]:
    """Each piece once, under its first name, where layers share some."""
    found: dict[int, Part] = {}
    for part in parts:
        found.setdefault(id(part.adapter), part)
    return list(found.values())


def trained_by(model: "NamedAdapters", adapter: str, method: "Method") -> dict[str, LoraAdapter]:
    """The pieces of an adapter that have a method, by name; one that layers share once."""
    return {part.name: part.adapter for part in single(parts_of(model, adapter)) if part.adapter.method is method}


def options_of(parts: dict[str, LoraAdapter], method: "Method") -> dict[str, object]:
    """The options of a method whose controller acts over all these pieces together. Raises ConfigError where they differ."""
    found = {name: {**method.options, **part.settings.options} for name, part in parts.items()}
    (first, options), *others = found.items()
    for name, other in others:
        if other != options:
            raise ConfigError(
                f"The method {method.name!r} acts over all its layers together, and {name!r} has other options than {first!r}: "
                f"{other}, not {options}. Give them all the same, or train them as two adapters."
            )
    return options
