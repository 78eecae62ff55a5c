"""`loratk export`."""

from pathlib import Path

import click

from .context import registry

FILE = click.Path(path_type=Path)


@click.command("export", short_help="Copy adapters to another format, or merge them into weights.")
@click.argument("src", type=FILE)
@click.argument("dst", type=FILE)
@click.option("--adapter", "adapters", metavar="NAME", multiple=True, help="An adapter of SRC; may be repeated. Default: all.")
@click.option("--to", "store", metavar="STORE", help="Format of DST. Default: by its suffix. `loratk plugins` lists the stores.")
@click.option("--dtype", type=click.Choice(["float16", "float32", "float64"]), help="Convert the numbers. Default: as they are.")
@click.option("--merged", is_flag=True, help="Write the base's weights with the adapters folded in. Needs --base.")
@click.option("--base", type=FILE, help="The weights that the adapters were trained on: arrays by dotted parameter names.")
@click.option("--any-base", is_flag=True, help="With --merged: take a base that the adapters were not made for, if the shapes fit.")
@click.option("--force", is_flag=True, help="Replace DST if it is there.")
def command(
    src: Path,
    dst: Path,
    adapters: tuple[str, ...],
    store: str | None,
    dtype: str | None,
    merged: bool,
    base: Path | None,
    any_base: bool,
    force: bool,
) -> None:
    """Copy adapters from the file SRC to the file DST in another format or dtype, or merge them into a base's weights.

    DST is written at once or not at all.
    """
    if merged != (base is not None):
        raise click.UsageError("--merged and --base go together: --merged --base FILE.")
    if any_base and not merged:
        raise click.UsageError("--any-base is for --merged.")
    from ..convert import export_adapters, export_merged

    names, plugins = list(adapters) or None, registry()
    if base is None:
        done = export_adapters(src, dst, adapters=names, dtype=dtype, store=store, force=force, registry=plugins)
        what = ", ".join(done)
    else:
        done = export_merged(
            src, base, dst, adapters=names, dtype=dtype, store=store, force=force, check_base=not any_base, registry=plugins
        )
        what = f"{base} with {', '.join(done)} merged"
    click.echo(f"Wrote {what} to {dst}.", err=True)
