"""What all commands share: the registry under the options given, and the stores in it."""

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from ..plugins import Registry


def registry() -> "Registry":
    """The registry without the plugins that `--without` names, and the default one until the command ends."""
    from ..plugins import build_registry, default_registry, use_registry

    context = click.get_current_context().find_root()
    return context.with_resource(use_registry(build_registry(context.obj))) if context.obj else default_registry()
