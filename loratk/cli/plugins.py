"""`loratk plugins`."""

import click

from .context import registry
from .show import table


@click.command("plugins", short_help="List what is registered, and by whom.")
def command() -> None:
    """List what is registered, of each kind, and by which plugin; `lora`, `io` and `algebra` are built in.

    A store is a format too: loratk's own layout in that kind of file.
    """
    plugins = registry()
    rows = [
        *(("layer type", plugins.layer_types[key].name, key.__name__, plugins.owners["layer type", key]) for key in plugins.layer_types),
        *(("method", name, "", plugins.owners["method", name]) for name in plugins.methods),
        *(("init", name, "", plugins.owners["init", name]) for name in plugins.inits),
        *(("store", name, " ".join(store.suffixes), plugins.owners["store", name]) for name, store in plugins.stores.items()),
        *(
            ("format", name, format.title + ("" if format.writable else " (reads only)"), plugins.owners["format", name])
            for name, format in plugins.formats.items()
        ),
        *(("merge rule", name, rule.title, plugins.owners["merge rule", name]) for name, rule in plugins.merge_rules.items()),
    ]
    table(("kind", "name", "for", "plugin"), rows)
