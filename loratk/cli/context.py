"""What commands share: the registry under the options given, and options of the kind KEY=VALUE."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from ..plugins import Registry


def registry() -> "Registry":
    """The registry without the plugins that `--without` names, and the default one until the command ends."""
    from ..plugins import build_registry, default_registry, use_registry

    context = click.get_current_context().find_root()
    return context.with_resource(use_registry(build_registry(context.obj))) if context.obj else default_registry()


def pairs(flag: str, texts: Sequence[str]) -> dict[str, str]:
    """The texts KEY=VALUE of an option that may be repeated. Raises UsageError for one without "=", and for a key given twice."""
    found: dict[str, str] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise click.UsageError(f"{flag} takes two names with '=' between them, found {text!r}.")
        if key in found:
            raise click.UsageError(f"{flag} is given twice for {key!r}.")
        found[key] = value
    return found
