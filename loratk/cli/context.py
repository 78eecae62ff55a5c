"""What all commands share: the registry under the options given, and the stores in it."""

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from ..plugins import Registry


def registry() -> "Registry":
    """The registry without the plugins that `--without` names."""
    from ..plugins import build_registry, default_registry

    without = click.get_current_context().obj
    return build_registry(without) if without else default_registry()
