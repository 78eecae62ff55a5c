"""`loratk extract`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .context import pairs, registry
from .rules import read_rules
from .show import results, table, track

if TYPE_CHECKING:
    from ..algebra.extraction import Extracted

FILE = click.Path(path_type=Path)
PLAIN = ("ratio", "energy", "error", "include", "exclude", "full", "tables", "dtype", "seed", "name", "to", "force", "dry_run")


@click.command("extract", short_help="Make an adapter of the difference of two checkpoints.")
@click.argument("base", type=FILE)
@click.argument("tuned", type=FILE)
@click.argument("dst", type=FILE, required=False)
@click.option("--rank", "--max-rank", "rank", type=click.IntRange(1), metavar="N", help="No larger rank than N.")
@click.option("--ratio", type=float, metavar="X", help="Keep each singular value of at least X times the largest.")
@click.option("--energy", type=float, metavar="X", help="The least rank that keeps this share of the squared singular values.")
@click.option("--error", type=float, metavar="X", help="The least rank whose relative Frobenius error is at most X.")
@click.option("--for", "rules", metavar="PATTERN=RULE:VALUE[,...]", multiple=True,
              help="Another rule for layers a pattern matches, such as q_proj=energy:0.95,rank:16. The first counts.")  # fmt: skip
@click.option("--include", metavar="PATTERN", multiple=True, help="Only layers a pattern matches; may be repeated.")
@click.option("--exclude", metavar="PATTERN", multiple=True, help="No layers a pattern matches; may be repeated.")
@click.option("--full", metavar="PATTERN", multiple=True, help="Keep layers whole; may be repeated. Norms and embeddings are.")
@click.option("--lora-embeddings", is_flag=True, help="Make factors of embeddings too.")
@click.option("--table", "tables", metavar="PATTERN", multiple=True, help="Layers that are embeddings, though their names do not tell.")
@click.option("--differences", is_flag=True, help="Keep what is whole as differences, as files for Stable Diffusion hold it.")
@click.option("--dtype", type=click.Choice(["float16", "bfloat16", "float32", "float64"]), default="float32", show_default=True,
              help="The dtype of factors.")  # fmt: skip
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the random sketches.")
@click.option("--name", default="default", show_default=True, help="The name of the adapter.")
@click.option(
    "--order", type=click.Choice(["input-first", "output-first"]), help="Order of the checkpoints' axes. Default: by their store."
)
@click.option("--to", metavar="FORMAT", help="Format of DST. Default: by its suffix. `loratk plugins` lists the formats.")
@click.option("-O", "--option", "options", metavar="NAME=VALUE", multiple=True, help="An option of the format.")
@click.option("--dry-run", is_flag=True, help="Show what would be written, and write nothing; DST may be left out.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
@click.option("--force", is_flag=True, help="Replace DST if it is there.")
def command(base: Path, tuned: Path, dst: Path | None, **given: Any) -> None:
    """Make an adapter of what TUNED adds to BASE, two checkpoints of one model, and write it to DST.

    Each weight that changed becomes factors, of the rank that --ratio, --energy or --error need, the largest of them, capped by --rank.
    Norms and embeddings are kept whole, changes of biases as they are. The checkpoints are files of arrays, or folders of them, and are
    read one tensor at a time. The error of each layer is measured on what is written.
    """
    if dst is None and not given["dry_run"]:
        raise click.UsageError("Missing argument 'DST'; without one only --dry-run makes sense.")
    if dst is None and (idle := [f"--{key}" for key in ("to", "force", "option") if given[f"{key}s" if key == "option" else key]]):
        raise click.UsageError(f"{', '.join(idle)} would have no effect without DST.")
    from ..algebra.extraction import extract

    done = extract(
        base, tuned, dst, rank=given["rank"], patterns=read_rules("--for", given["rules"], keep=False),  # type: ignore[arg-type]
        embeddings="lora" if given["lora_embeddings"] else "full", whole="diff" if given["differences"] else "full",
        order=given["order"], options=pairs("-O", given["options"]), registry=registry(), track=track,
        **{key: given[key] for key in PLAIN},
    )  # fmt: skip
    wrote = f"{done.state.name} to {dst}" if dst and not given["dry_run"] else None
    results(done, done.notes, _show, as_json=given["as_json"], wrote=wrote)


def _show(done: "Extracted") -> None:
    head = ("layer", "kept as", "rank", "error", "energy kept", "|change|")
    rows = []
    for name, entry in done.certificate.modules.items():
        rank = "-" if entry.rank is None else str(entry.rank)
        method = done.state.modules[name]["method"]
        rows.append((name, method, rank, f"{entry.error:.2%}", f"{entry.energy:.2%}", f"{entry.norm:.4g}"))
    table(head, rows, right=head[2:])
    whole = done.certificate
    same = f"; {done.unchanged} are the same in both" if done.unchanged else ""
    click.echo(f"{len(rows)} layer{'s' * (len(rows) != 1)} together: error {whole.error:.2%}, energy kept {whole.energy:.2%}{same}.")
