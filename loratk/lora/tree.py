"""A base model seen as if there were no adapters in it: its modules, their names, and putting one in another's place."""

from collections.abc import Iterator

from ..nn import Module, Parameter
from .layer import LoraLayer

ROOT = "root"


def walk(module: Module, name: str = "") -> Iterator[tuple[str, Module, LoraLayer | None]]:
    """Name, module and LoraLayer around it (or None) of a base model, as if there were no adapters in it.

    A module that stands at several places comes once for each.
    """
    layer = module if isinstance(module, LoraLayer) else None
    inner = layer.base if layer else module
    yield name, inner, layer
    for part, child in inner.children():
        yield from walk(child, f"{name}.{part}" if name else part)


def modules(base: Module) -> list[tuple[str, Module]]:
    """The base's modules without adapters, each once, by the first of its names."""
    found: dict[int, tuple[str, Module]] = {}
    for name, inner, _ in walk(base):
        found.setdefault(id(inner), (name or ROOT, inner))
    return list(found.values())


def own(module: Module) -> Iterator[tuple[str, Parameter]]:
    """A module's own parameters and buffers by name, without those of its children."""
    return ((key, value) for key, value in vars(module).items() if isinstance(value, Parameter) and not key.startswith("_"))


def swap(base: Module, old: Module, new: Module) -> Module:
    """Put a module in another's place, or in all its places, and return the base, which is `new` if it was `old`."""
    if base is old:
        return new
    for _, inner, _ in list(walk(base)):
        for name, child in list(inner.children()):
            if child is old:
                setattr(inner, name, new)
    return base
