"""`loratk plugins`."""

import click

from .context import registry
from .show import table


@click.command("plugins", short_help="List what is registered, and by whom.")
def command() -> None:
    """List the layer types, methods, stores and formats, and which plugin registers each; `lora` and `io` are built in.

    A store is a format too: loratk's own layout in that kind of file.
    """
    plugins = registry()
    rows = [
        *(("layer type", plugins.layer_types[key].name, key.__name__, plugins.owners["layer type", key]) for key in plugins.layer_types),
        *(("method", name, "", plugins.owners["method", name]) for name in plugins.methods),
        *(("store", name, " ".join(store.suffixes), plugins.owners["store", name]) for name, store in plugins.stores.items()),
        *(
            ("format", name, format.title + ("" if format.writable else " (reads only)"), plugins.owners["format", name])
            for name, format in plugins.formats.items()
        ),
    ]
    table(("kind", "name", "for", "plugin"), rows)
