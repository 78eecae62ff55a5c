"""The plugin manager, and the registry of all that plugins and built-ins provide."""

import importlib
import importlib.metadata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

import pluggy

from . import hookspecs
from .errors import PluginError, UnknownNameError, choices

if TYPE_CHECKING:
    from .algebra.rules import MergeRule
    from .exchange.format import AdapterFormat
    from .io.store import Store
    from .lora.inits import Init
    from .lora.layer_types import LayerType
    from .lora.methods import Method

BUILTIN = {"lora": "loratk.lora.builtin", "io": "loratk.io.builtin", "algebra": "loratk.algebra.builtin"}


@dataclass(frozen=True)
class Registry:
    """What is registered, by key, and which plugin owns each key: `owners[kind, key]`."""

    layer_types: "dict[type, LayerType[Any]]"
    methods: "dict[str, Method]"
    inits: "dict[str, Init]"
    stores: "dict[str, Store]"
    formats: "dict[str, AdapterFormat]"
    merge_rules: "dict[str, MergeRule]"
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

    def init(self, name: str) -> "Init":
        """The initialisation of that name. Raises UnknownNameError."""
        if name not in self.inits:
            raise UnknownNameError(
                f"Unknown init {name!r}. Registered inits: {choices(self.inits)}; a plugin that provides it may not be installed."
            )
        return self.inits[name]

    def merge_rule(self, name: str) -> "MergeRule":
        """The merge rule of that name. Raises UnknownNameError."""
        if name not in self.merge_rules:
            raise UnknownNameError(
                f"Unknown merge rule {name!r}. Registered merge rules: {choices(self.merge_rules)}; a plugin that provides it may not be "
                "installed."
            )
        return self.merge_rules[name]


HOOKS = tuple(name for name in vars(hookspecs) if name.startswith("register_"))
CURE = "Leave one out (without=, --without) or uninstall it."


def build_registry(without: Iterable[str] = (), extra: Iterable[tuple[str, object]] = ()) -> Registry:
    """A registry of the built-ins, all installed plugins but those named in `without`, and `extra` (name, plugin) pairs.

    Raises PluginError, naming the plugin, if one cannot be imported, implements no hook or one that does not exist, hands
    over what it should not, or claims a key or a name that another has; UnknownNameError if `without` names no plugin.
    """
    plugins = [*_installed(set(without)), *extra]
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    for name, plugin in plugins:
        _register(manager, name, plugin)
    owners: dict[tuple[str, Any], str] = {}
    return Registry(
        _collect(manager, "register_layer_types", "layer type", "module", owners),
        _collect(manager, "register_methods", "method", "name", owners),
        _collect(manager, "register_inits", "init", "name", owners),
        _collect(manager, "register_stores", "store", "name", owners),
        _collect(manager, "register_formats", "format", "name", owners),
        _collect(manager, "register_merge_rules", "merge rule", "name", owners),
        owners,
    )


def _installed(without: set[str]) -> Iterator[tuple[str, object]]:
    """Name and module of the built-ins and of every entry point, but those left out."""
    points = list(importlib.metadata.entry_points(group=hookspecs.PROJECT))
    known = {*BUILTIN, *(point.name for point in points)}
    if missing := without - known:
        raise UnknownNameError(f"There is no plugin {choices(missing)} to leave out. Plugins: {choices(known)}.")
    for name, module in BUILTIN.items():
        if name not in without:
            yield name, importlib.import_module(module)
    for point in points:
        if point.name not in without:
            try:
                yield point.name, point.load()
            except Exception as error:  # whatever a plugin's own code raises
                raise PluginError(
                    f"The plugin {point.name!r} ({point.value}) could not be imported: {type(error).__name__}: {error}. "
                    "Install what it needs, uninstall it, or leave it out (without=, --without)."
                ) from error


def _register(manager: pluggy.PluginManager, name: str, plugin: object) -> None:
    try:
        if manager.has_plugin(name):
            raise PluginError(f"Two plugins have the name {name!r}: {manager.get_plugin(name)!r} and {plugin!r}. {CURE}")
        manager.register(plugin, name)
        if not manager.get_hookcallers(plugin):
            raise PluginError(f"The plugin {name!r} implements no hook; mark its functions with @loratk.hookimpl. Hooks: {choices(HOOKS)}.")
        manager.check_pending()
    except (pluggy.PluginValidationError, ValueError) as error:
        raise PluginError(f"The plugin {name!r} breaks the contract: {' '.join(str(error).split())}. Hooks: {choices(HOOKS)}.") from error


def _collect(manager: pluggy.PluginManager, hook: str, kind: str, key: str, owners: dict[tuple[str, Any], str]) -> dict[Any, Any]:
    """All that the plugins' implementations of a hook return, by key; `owners` is told who returned it."""
    found: dict[Any, Any] = {}
    for implementation in getattr(manager.hook, hook).get_hookimpls():
        owner, items = implementation.plugin_name, implementation.function()
        if not isinstance(items, (list, tuple)):
            raise PluginError(f"{hook}() of the plugin {owner!r} must return a list, found {type(items).__name__}.")
        for item in items:
            if isinstance(item, type) or not hasattr(item, key):
                raise PluginError(
                    f"{hook}() of the plugin {owner!r} must return instances with the attribute {key!r}, found {item!r}"
                    f"{'; call it: ' + item.__name__ + '()' if isinstance(item, type) else ''}."
                )
            k = getattr(item, key)
            if k in found:
                shown = getattr(k, "__name__", k)
                raise PluginError(f"Two plugins register the {kind} {shown!r}: {owners[kind, k]!r} and {owner!r}. {CURE}")
            found[k], owners[kind, k] = item, owner
    return dict(sorted(found.items(), key=lambda pair: getattr(pair[0], "__qualname__", pair[0])))


_chosen: ContextVar[Registry | None] = ContextVar("registry", default=None)


@contextmanager
def use_registry(registry: Registry) -> Iterator[Registry]:
    """Make a registry the default one inside a `with` block; only in the thread that enters it."""
    token = _chosen.set(registry)
    try:
        yield registry
    finally:
        _chosen.reset(token)


def default_registry() -> Registry:
    """The registry that `use_registry` chose, else that of the built-ins and everything installed, which is built once."""
    return _chosen.get() or _installed_registry()


@cache
def _installed_registry() -> Registry:
    return build_registry()
