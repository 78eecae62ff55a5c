"""`loratk resize`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .context import pairs, registry
from .rules import read_rules
from .show import clean, results, table, track

if TYPE_CHECKING:
    from ..algebra.resizing import Resized

FILE = click.Path(path_type=Path)


@click.command("resize", short_help="Give adapters other ranks.")
@click.argument("src", type=FILE)
@click.argument("dst", type=FILE, required=False)
@click.option("--rank", type=click.IntRange(1), metavar="N", help="No larger rank than N; with --grow, rank N.")
@click.option("--ratio", type=float, metavar="X", help="Keep each singular value of at least X times the largest.")
@click.option("--energy", type=float, metavar="X", help="The least rank that keeps this share of the squared singular values.")
@click.option("--error", type=float, metavar="X", help="The least rank whose relative Frobenius error is at most X.")
@click.option("--for", "rules", metavar="PATTERN=RULE:VALUE[,...]", multiple=True,
              help="Another rule for layers a pattern matches: q_proj=energy:0.95,rank:16, or q_proj=keep. The first counts.")  # fmt: skip
@click.option("--grow", is_flag=True, help="With --rank: fill smaller ranks up with zeros.")
@click.option("--from", "format", metavar="FORMAT", help="Format of SRC. Default: by its content.")
@click.option("--to", metavar="FORMAT", help="Format of DST. Default: by its suffix, else that of SRC.")
@click.option("--adapter", "adapters", metavar="NAME", multiple=True, help="An adapter of SRC; may be repeated. Default: all.")
@click.option("--base", type=FILE, help="The weights the adapters were trained on, where a format needs them.")
@click.option("-O", "--option", "options", metavar="NAME=VALUE", multiple=True, help="An option of either format; from:NAME or to:NAME.")
@click.option("--dry-run", is_flag=True, help="Show what would be written, and write nothing; DST may be left out.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
@click.option("--force", is_flag=True, help="Replace DST if it is there.")
def command(src: Path, dst: Path | None, **given: Any) -> None:
    """Give the adapters of SRC, a file or folder of any format, other ranks, and write them to DST.

    Each update becomes the best one of its new rank, computed from its factors; alpha and scaling change so that what is kept counts as
    before, dtypes stay. Of --ratio, --energy and --error the one that needs the largest rank decides; --rank caps it. Patterns are those
    of targets: a name or its end, a glob, or re: with a regular expression.
    """
    if dst is None and not given["dry_run"]:
        raise click.UsageError("Missing argument 'DST'; without one only --dry-run makes sense.")
    if dst is None and (idle := [f"--{key}" for key in ("to", "force") if given[key]]):
        raise click.UsageError(f"{', '.join(idle)} would have no effect without DST.")
    from ..algebra.resizing import resize, target_format
    from ..convert.adapters import split_options
    from ..exchange import detect_format

    plugins, rules = registry(), read_rules("--for", given["rules"])
    found = detect_format(src, format=given["format"], registry=plugins)
    target = target_format(dst, given["to"], found, plugins) if dst else None
    sides = {"from": found.format.options, "to": target.options if target else {}}
    reads, writes = split_options(pairs("-O", given["options"]), sides)
    done = resize(
        src, dst, patterns=rules, format=found, adapters=list(given["adapters"]) or None, options=reads, to_options=writes,
        registry=plugins, track=track,
        **{key: given[key] for key in ("rank", "ratio", "energy", "error", "grow", "to", "base", "force", "dry_run")},
    )  # fmt: skip
    wrote = f"{', '.join(state.name for state in done.states)} to {dst}" if dst and not given["dry_run"] else None
    results(done, done.notes, _show, as_json=given["as_json"], wrote=wrote)


def _show(done: "Resized") -> None:
    for result, before in zip(done.results, done.before, strict=True):
        click.echo(f"adapter {clean(result.state.name)!r}")
        head = ("layer", "rank", "now", "error", "energy kept", "|update|")
        rows = [
            (name, str(before.get(name, "-")), str(entry.rank), f"{entry.error:.2%}", f"{entry.energy:.2%}", f"{entry.norm:.4g}")
            for name, entry in result.certificate.modules.items()
        ]
        table(head, rows, right=head[1:])
        whole = result.certificate
        click.echo(f"All layers together: error {whole.error:.2%}, energy kept {whole.energy:.2%}.")
