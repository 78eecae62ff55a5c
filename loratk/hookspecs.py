"""The hooks a plugin may implement. Each takes no argument and returns a list; all plugins' lists are joined by key.

A plugin is a module with functions of these names marked `@hookimpl`, announced by an entry point of the group "loratk".
"""

from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from .algebra.rules import MergeRule
    from .exchange.format import AdapterFormat
    from .io.store import Store
    from .lora.inits import Init
    from .lora.layer_types import LayerType
    from .lora.methods import Method

PROJECT = "loratk"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def register_layer_types() -> list["LayerType[Any]"]:  # type: ignore[empty-body]
    """Kinds of module that adapters can attach to. Key: the module's class."""


@hookspec
def register_methods() -> list["Method"]:  # type: ignore[empty-body]
    """Ways of updating a matrix, such as LoRA and DoRA. Key: `name`."""


@hookspec
def register_inits() -> list["Init"]:  # type: ignore[empty-body]
    """Ways for the factors of an adapter to start, such as PiSSA. Key: `name`."""


@hookspec
def register_stores() -> list["Store"]:  # type: ignore[empty-body]
    """File formats for flat dicts of arrays and strings. Key: `name`."""


@hookspec
def register_formats() -> list["AdapterFormat"]:  # type: ignore[empty-body]
    """How other tools keep adapters in files. Key: `name`."""


@hookspec
def register_merge_rules() -> list["MergeRule"]:  # type: ignore[empty-body]
    """Ways to make one update of those of several adapters, such as TIES. Key: `name`."""
