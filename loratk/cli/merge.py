"""`loratk merge`."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .context import pairs, registry
from .show import clean, counting, size, table
from .weighted import weighted

if TYPE_CHECKING:
    from ..convert import Merged
    from ..convert.job import ChangedArray

FILE = click.Path(path_type=Path)
KEPT = ".residual.npz"
SHOWN = 12


@click.command("merge", short_help="Add adapters to a checkpoint's weights.")
@click.argument("base", type=FILE)
@click.argument("adapters", metavar="ADAPTER[:WEIGHT]...", nargs=-1, required=True)
@click.option("-o", "--out", type=FILE, required=True, help="The checkpoint to write: a file, or for a folder of shards a folder.")
@click.option("--from", "format", metavar="FORMAT", help="Format of the adapters. Default: by their content.")
@click.option("--to", metavar="STORE", help="Store of OUT. Default: by its suffix.")
@click.option("--adapter", "names", metavar="NAME", multiple=True, help="An adapter of the files; may be repeated. Default: all.")
@click.option("--select", metavar="GLOB", multiple=True, help="Only modules whose path matches; may be repeated.")
@click.option("--rename", metavar="OLD=NEW", multiple=True, help="Another path for a module, or for all whose path begins with it.")
@click.option("--allow-missing", metavar="NAME", multiple=True, help="A tensor that may be absent from an adapter, by its name there.")
@click.option(
    "--dtype", type=click.Choice(["float16", "bfloat16", "float32", "float64"]), help="Dtype of all arrays of OUT. Default: as they are."
)
@click.option("--base-order", type=click.Choice(["input-first", "output-first"]), help="Order of the base's axes. Default: by its store.")
@click.option("--any-base", is_flag=True, help="Take a base that the adapters were not made for, if the shapes fit.")
@click.option("--again", metavar="NAME", multiple=True, help="Merge this adapter though it was merged before; may be repeated.")
@click.option("--new-ledger", is_flag=True, help="Begin a new ledger of merges: what was merged into BASE before is forgotten.")
@click.option("--stochastic-rounding", "stochastic", is_flag=True, help="Round by chance, so that small updates count on average.")
@click.option("--seed", type=int, metavar="N", help="With --stochastic-rounding: another N, another draw.  [default: 0]")
@click.option("--keep-residual", "residual", metavar="FILE|yes", help=f"Keep what `unmerge` needs to restore BASE; yes: in OUT{KEPT}.")
@click.option("-O", "--option", "options", metavar="NAME=VALUE", multiple=True, help="An option of a format or store; from:NAME, to:NAME.")
@click.option("--no-resume", is_flag=True, help="Begin anew, whatever an interrupted merge has finished.")
@click.option("--dry-run", is_flag=True, help="Show what would change and what does not fit, and write nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
@click.option("--force", is_flag=True, help="Replace OUT if it is there.")
def command(base: Path, adapters: tuple[str, ...], out: Path, **given: Any) -> None:
    """Add the adapters, files or folders of any format, to the weights in BASE, each update times its weight, and write OUT.

    BASE is a file of arrays (safetensors, HDF5, npz), or a folder of safetensors shards. No model is built, and no more than a few times
    the largest array is in memory. OUT appears when all of it is on the disk; the same command goes on from where an interrupted one was.

    A ledger in OUT tells what was merged: to merge an adapter twice is refused, and `loratk unmerge` restores the bits. For weights in
    bfloat16 and float16 it is shown how much of the update rounding takes away. Exit codes: 0 success, 1 error, or a dry run with faults.
    """
    if given["seed"] is not None and not given["stochastic"]:
        raise click.UsageError("--seed is for --stochastic-rounding.")
    from ..convert import merge

    paths, named, weights = zip(*map(weighted, adapters), strict=True)
    if any(named):
        raise click.UsageError(f"An adapter of a file is chosen by --adapter NAME here, not by #NAME, found {next(filter(None, named))!r}.")
    residual = out.with_name(out.name + KEPT) if given["residual"] == "yes" else given["residual"]
    alike = ("format", "to", "select", "allow_missing", "dtype", "again", "new_ledger", "stochastic", "dry_run", "force")
    shared = {key: given[key] for key in alike}
    with counting("merging") as progress:
        done = merge(
            base, list(paths), out, weights=weights, names=list(given["names"]) or None, rename=pairs("--rename", given["rename"]),
            options=pairs("-O", given["options"]), order=given["base_order"], check_base=not given["any_base"],
            seed=given["seed"] or 0, residual=residual, resume=not given["no_resume"], registry=registry(), progress=progress, **shared,
        )  # fmt: skip
    for note in done.notes:
        click.echo(f"- {clean(note)}", err=True)
    if given["as_json"]:
        click.echo(json.dumps(to_json(done), indent=2))
    else:
        _show(done)
    if done.written:
        kept = f", and {done.residual} ({size(done.residual_size)}) to undo it" if done.residual else ""
        click.echo(f"Wrote {base} with {clean(_adapters(done))} merged to {out}{kept}.", err=True)
    click.get_current_context().exit(1 if done.faults else 0)


def to_json(done: "Merged") -> dict[str, Any]:
    """Everything, and the shares that rounding took."""
    shares = {} if done.rounding is None else {"kept_share": done.rounding.kept_share, "lost_share": done.rounding.lost_share}
    record = asdict(done) | {"path": str(done.path), "base": str(done.base), "residual": str(done.residual) if done.residual else None}
    if done.rounding is not None:
        record["rounding"] = record["rounding"] | shares
    return record


def _adapters(done: "Merged") -> str:
    return ", ".join(f"{a.name}{f' (times {a.weight:g})' if a.weight != 1 else ''}" for a in done.adapters)


def _show(done: "Merged") -> None:
    from ..convert.rounding import HALVES, total

    verb = "changed" if done.written else "would change"
    click.echo(f"{len(done.changed)} of {done.arrays} arrays {verb}, {size(done.size)} in all.")
    halves = [array for array in done.changed if array.rounding is not None and array.dtype in HALVES]
    if halves:
        worst = sorted(halves, key=lambda array: -array.rounding.lost_share if array.rounding else 0.0)[:SHOWN]
        head = ("array", "dtype", "|update|", "unchanged", "noise" if done.stochastic else "norm lost")
        table(head, [_row(array) for array in worst], right=head[2:])
        if len(halves) > SHOWN:
            click.echo(f"and {len(halves) - SHOWN} more, of which rounding took less.")
        whole = total(array.rounding for array in halves if array.rounding is not None)
        share = f"{whole.lost_share:.2%} of its norm"
        lost = f"noise of {share} is added, which is 0 on average" if done.stochastic else f"{share} is lost"
        click.echo(f"All together: {whole.kept_share:.1%} of the weights with an update did not change, {lost}.")
    elif not done.written:
        plan = ("array", "dtype", "shape")
        table(plan, [(array.name, array.dtype, " x ".join(map(str, array.shape))) for array in done.changed])
    if done.faults:
        from ..errors import faults

        first, *rest = faults("What does not fit:", done.faults).splitlines()
        click.echo("\n".join([first, *map(clean, rest)]))


def _row(array: "ChangedArray") -> tuple[str, ...]:
    found = array.rounding
    assert found is not None
    return array.name, array.dtype, f"{found.update:.4g}", f"{found.kept_share:.1%}", f"{found.lost_share:.2%}"
