"""`loratk export`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .context import pairs, registry
from .show import clean, counting, working

if TYPE_CHECKING:
    from ..convert import Exported

FILE = click.Path(path_type=Path)
NO_MERGE = ("portable", "bake", "bake_rank", "keras")
KERAS = ".lora.h5"


@click.command("export", short_help="Convert adapters to another format, or merge them into weights.")
@click.argument("src", type=FILE)
@click.argument("dst", type=FILE)
@click.option("--from", "format", metavar="FORMAT", help="Format of SRC. Default: by its content.")
@click.option("--to", metavar="FORMAT", help="Format of DST. Default: by its suffix. `loratk plugins` lists the formats.")
@click.option("--adapter", "adapters", metavar="NAME", multiple=True, help="An adapter of SRC; may be repeated. Default: all.")
@click.option("--select", metavar="GLOB", multiple=True, help="Only modules whose path matches; may be repeated.")
@click.option("--rename", metavar="OLD=NEW", multiple=True, help="Another path for a module, or for all whose path begins with it.")
@click.option(
    "--dtype", type=click.Choice(["float16", "bfloat16", "float32", "float64"]), help="Convert the numbers. Default: as they are."
)
@click.option("--keras", is_flag=True, help="Write a .lora.h5 that keras-hub loads as its own and loratk as its own.")
@click.option("--portable", is_flag=True, help="One rank for all, alpha = rank, the scaling in lora_B: what the simplest reader takes.")
@click.option("--bake", is_flag=True, help="Write the nearest thing where DST cannot hold it exactly, and say how near.")
@click.option("--bake-rank", type=click.IntRange(1), metavar="N", help="With --bake: the rank of what is approximated. Default: its own.")
@click.option("--merged", is_flag=True, help="Write the base's weights with the adapters folded in. Needs --base.")
@click.option("--base", type=FILE, help="The weights that the adapters were trained on: a file of arrays, or a folder of them.")
@click.option("--base-order", type=click.Choice(["input-first", "output-first"]), help="Order of the base's axes. Default: by its store.")
@click.option("--any-base", is_flag=True, help="With --merged: take a base that the adapters were not made for, if the shapes fit.")
@click.option("--allow-missing", metavar="NAME", multiple=True, help="A tensor that may be absent from SRC, by its name there.")
@click.option("-O", "--option", "options", metavar="NAME=VALUE", multiple=True, help="An option of either format; from:NAME or to:NAME.")
@click.option("--force", is_flag=True, help="Replace DST if it is there.")
def command(src: Path, dst: Path, **given: Any) -> None:
    """Convert adapters from SRC, a file or folder of any format, to DST in another format or dtype, or merge them into a base's weights.

    Each decision on the way is a line on standard error. DST is written at once or not at all.
    """
    _check(dst, given)
    done = _merge(src, dst, given) if given["merged"] else _convert(src, dst, given)
    for note in done.notes:
        click.echo(f"- {clean(note)}", err=True)
    what = ", ".join(done.names)
    if given["merged"]:
        what = f"{given['base']} with {what} merged"
    click.echo(f"Wrote {what} to {dst}.", err=True)


def _check(dst: Path, given: dict[str, Any]) -> None:
    """Raises UsageError for options that would have no effect, or contradict each other."""
    if given["merged"] and not given["base"]:
        raise click.UsageError("--merged needs --base FILE, the weights to merge into.")
    if given["merged"] and (idle := [key for key in NO_MERGE if given[key]]):
        raise click.UsageError(f"{_flags(idle)} would have no effect with --merged: merging is exact for every scale and method.")
    if given["any_base"] and not given["merged"]:
        raise click.UsageError("--any-base is for --merged.")
    if given["base_order"] and not given["base"]:
        raise click.UsageError("--base-order is for --base.")
    if given["keras"] and given["to"] not in (None, "keras"):
        raise click.UsageError(f"--keras writes the format 'keras', --to asks for {given['to']!r}.")
    if given["keras"] and not dst.name.endswith(KERAS):
        raise click.UsageError(f"keras-hub loads no file whose name does not end in {KERAS!r}; with --keras, name DST so.")
    if given["bake_rank"] and not given["bake"]:
        raise click.UsageError("--bake-rank is for --bake.")


def _flags(names: Sequence[str]) -> str:
    return ", ".join(f"--{name.replace('_', '-')}" for name in names)


def _shared(given: dict[str, Any]) -> dict[str, Any]:
    """What converting and merging both take."""
    shared = {key: given[key] for key in ("format", "to", "select", "allow_missing", "dtype", "force")}
    rename, options = pairs("--rename", given["rename"]), pairs("-O", given["options"])
    return shared | {"adapters": list(given["adapters"]) or None, "rename": rename, "options": options, "registry": registry()}


def _convert(src: Path, dst: Path, given: dict[str, Any]) -> "Exported":
    from ..convert import export_adapters
    from ..exchange.base import opened_base

    shared = _shared(given)
    if given["keras"]:
        shared |= {"to": "keras", "options": shared["options"] | {"to:dual": "yes"}}
    with working(f"converting {src}"), opened_base(given["base"], shared["registry"].stores, given["base_order"]) as base:
        return export_adapters(
            src, dst, base=base, portable=given["portable"], bake=given["bake"], bake_rank=given["bake_rank"], **shared
        )  # fmt: skip


def _merge(src: Path, dst: Path, given: dict[str, Any]) -> "Exported":
    from ..convert import export_merged

    with counting("merging") as progress:
        return export_merged(
            src, given["base"], dst, order=given["base_order"], check_base=not given["any_base"], progress=progress, **_shared(given)
        )  # fmt: skip
