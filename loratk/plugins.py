"""The plugin manager, and the registry of all that plugins and built-ins provide."""

import importlib
import importlib.metadata
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

import pluggy

from . import hookspecs
from .errors import PluginError, UnknownNameError, choices

if TYPE_CHECKING:
    from .io.store import Store
    from .lora.layer_types import LayerType
    from .lora.methods import Method

BUILTIN = {"lora": "loratk.lora.builtin", "io": "loratk.io.builtin"}


@dataclass(frozen=True)
class Registry:
    """What is registered, by key, and which plugin owns each key: `owners[kind, key]`."""

    layer_types: "dict[type, LayerType[Any]]"
    methods: "dict[str, Method]"
    stores: "dict[str, Store]"
    owners: dict[tuple[str, Any], str] = field(default_factory=dict)

    def layer_type(self, module: object) -> "LayerType[Any] | None":
        """The layer type of a module: that of its class, else of the nearest base class that has one, else None."""
        for cls in type(module).__mro__:
            if cls in self.layer_types:
                return self.layer_types[cls]
        return None

    def method(self, name: str) -> "Method":
        """The method of that name. Raises UnknownNameError."""
        if name not in self.methods:
            raise UnknownNameError(
                f"Unknown method {name!r}. Registered methods: {choices(self.methods)}; a plugin that provides it may not be installed."
            )
        return self.methods[name]


def _manager(without: Iterable[str]) -> pluggy.PluginManager:
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    for name, module in BUILTIN.items():
        manager.register(importlib.import_module(module), name)
    blocked = set(without)
    for name in blocked:
        manager.set_blocked(name)
    try:
        manager.load_setuptools_entrypoints(hookspecs.PROJECT)
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        raise PluginError(f"The plugin {manager.get_name(error.plugin) or error.plugin!r} breaks the contract: {error}") from error
    except ImportError as error:
        raise PluginError(
            f"A plugin could not be imported ({error}). Install what it needs, uninstall it, or block it with without=."
        ) from error
    known = {*BUILTIN, *(point.name for point in importlib.metadata.entry_points(group=hookspecs.PROJECT))}
    missing = sorted(blocked - known)
    if missing:
        raise UnknownNameError(f"There is no plugin {choices(missing)} to leave out. Plugins: {choices(known)}.")
    return manager


def build_registry(without: Iterable[str] = (), extra: Iterable[tuple[str, object]] = ()) -> Registry:
    """A registry of the built-ins, all installed plugins but those named in `without`, and `extra` (name, plugin) pairs.

    Raises PluginError if two plugins claim one key, a hook is misspelt or takes arguments, or a plugin cannot be imported.
    """
    manager = _manager(without)
    for name, plugin in extra:
        try:
            manager.register(plugin, name)
            manager.check_pending()
        except (pluggy.PluginValidationError, ValueError) as error:
            raise PluginError(f"The plugin {name!r} breaks the contract: {error}") from error
    owners: dict[tuple[str, Any], str] = {}

    def collect(hook: str, kind: str, key: Callable[[Any], Any]) -> dict[Any, Any]:
        found: dict[Any, Any] = {}
        for implementation in getattr(manager.hook, hook).get_hookimpls():
            for item in implementation.function():
                k = key(item)
                if k in found:
                    raise PluginError(
                        f"Two plugins register the {kind} {getattr(k, '__name__', k)!r}: {owners[kind, k]!r} and "
                        f"{implementation.plugin_name!r}. Leave one out (without=, --without) or uninstall it."
                    )
                found[k], owners[kind, k] = item, implementation.plugin_name
        return dict(sorted(found.items(), key=lambda pair: getattr(pair[0], "__qualname__", pair[0])))

    return Registry(
        collect("register_layer_types", "layer type", lambda item: item.module),
        collect("register_methods", "method", lambda item: item.name),
        collect("register_stores", "store", lambda item: item.name),
        owners,
    )


@cache
def default_registry() -> Registry:
    """The registry of the built-ins and everything installed, built once."""
    return build_registry()
