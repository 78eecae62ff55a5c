"""`loratk unmerge`."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from .context import registry
from .show import clean, counting

FILE = click.Path(path_type=Path)


@click.command("unmerge", short_help="Restore the bits of a checkpoint before a merge.")
@click.argument("merged", type=FILE)
@click.option("-o", "--out", type=FILE, required=True, help="The checkpoint to write: a file, or for a folder of shards a folder.")
@click.option("--base", type=FILE, help="The checkpoint that was merged into.")
@click.option("--residual", "residuals", type=FILE, multiple=True, help="A file that `merge --keep-residual` wrote; may be repeated.")
@click.option("--adapter", metavar="NAME", help="Take out just this adapter; an error if others would go with it.")
@click.option("--to", metavar="STORE", help="Store of OUT. Default: by its suffix.")
@click.option("--no-resume", is_flag=True, help="Begin anew, whatever an interrupted run has finished.")
@click.option(
    "--dry-run", is_flag=True, help="Show what would be taken out, and write nothing. With --base: check that it is the right one."
)
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
@click.option("--force", is_flag=True, help="Replace OUT if it is there.")
def command(merged: Path, out: Path, **given: Any) -> None:
    """Write the checkpoint MERGED as it was before adapters were merged into it, bit for bit.

    Either from the base, if its arrays have the checksum that the ledger in MERGED has of it, or from the residuals that were kept of the
    last merge, and of as many before it as are to be undone. What is restored is compared with the ledger before it gets its name.
    """
    if bool(given["base"]) == bool(given["residuals"]):
        raise click.UsageError("Give either --base, the checkpoint that was merged into, or --residual, what merge kept to undo it.")
    from ..convert import unmerge

    shared = {key: given[key] for key in ("base", "residuals", "adapter", "to", "dry_run", "force")}
    with counting("restoring") as progress:
        done = unmerge(merged, out, resume=not given["no_resume"], registry=registry(), progress=progress, **shared)
    for note in done.notes:
        click.echo(f"- {clean(note)}", err=True)
    taken, left = (", ".join(adapter.name for adapter in adapters) or "nothing" for adapters in (done.adapters, done.left))
    if given["as_json"]:
        click.echo(json.dumps(asdict(done) | {"path": str(done.path), "merged": str(done.merged)}, indent=2))
    else:
        click.echo(f"{'Taken' if done.written else 'Would be taken'} out: {clean(taken)}. Left in it: {clean(left)}.")
    if done.written:
        click.echo(f"Wrote {done.arrays} arrays, bit for bit as they were before, to {out}.", err=True)
