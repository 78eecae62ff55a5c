"""`loratk verify`."""

import json
from dataclasses import asdict
from pathlib import Path

import click

from .context import pairs, registry
from .show import clean, working

FILE = click.Path(path_type=Path)


@click.command("verify", short_help="Check a file of adapters in every way there is.")
@click.argument("file", type=FILE)
@click.option("--from", "format", metavar="FORMAT", help="Format of FILE. Default: by its content.")
@click.option("--base", type=FILE, help="The weights the adapters were trained on: check that names, shapes and fingerprint fit.")
@click.option("--base-order", type=click.Choice(["input-first", "output-first"]), help="Order of the base's axes. Default: by its store.")
@click.option("--allow-missing", metavar="NAME", multiple=True, help="A tensor that may be absent from FILE, by its name there.")
@click.option("--strict", is_flag=True, help="Count what is only worth a second look as a fault too.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
@click.option("-O", "--option", "options", metavar="NAME=VALUE", multiple=True, help="An option of the format; may be repeated.")
def command(
    file: Path,
    format: str | None,
    base: Path | None,
    base_order: str | None,
    allow_missing: tuple[str, ...],
    strict: bool,
    as_json: bool,
    options: tuple[str, ...],
) -> None:
    """Check FILE, a file or folder of adapters of any format: checksums, structure, values, and with --base whether it fits that.

    Lists what holds, every fault, what is worth a second look (such as an update that is zero), and what could not be checked. Exit codes:
    0 no fault, 1 faults.
    """
    if base_order and not base:
        raise click.UsageError("--base-order is for --base.")
    from ..exchange.base import opened_base
    from ..verify import verify

    plugins, given = registry(), pairs("-O", options)
    with working(f"checking {file}"), opened_base(base, plugins.stores, base_order) as opened:
        done = verify(file, format=format, base=opened, options=given, allow_missing=allow_missing, registry=plugins)
    sound = done.sound and not (strict and done.cautions)
    if as_json:
        click.echo(json.dumps({"sound": sound, **asdict(done)}, indent=2))
    else:
        marks = (
            ("ok", "green", done.passed),
            ("FAULT", "red", done.faults),
            ("caution", "yellow", done.cautions),
            ("?", "cyan", done.unchecked),
        )
        for mark, colour, lines in marks:
            for line in lines:
                first, *more = line.splitlines()
                click.echo(f"{click.style(mark.ljust(7), fg=colour)} {clean(first)}")
                for rest in more:
                    click.echo(f"{' ' * 8}{clean(rest)}")
        click.echo(f"{file} is {'sound' if sound else 'not sound'}.")
    click.get_current_context().exit(0 if sound else 1)
