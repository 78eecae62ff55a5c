"""`loratk combine`."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import click

from .context import pairs, registry
from .show import clean, table, track
from .weighted import weighted

if TYPE_CHECKING:
    from ..algebra.combining import Combined
    from ..algebra.sources import Source

FILE = click.Path(path_type=Path)


@click.command("combine", short_help="Make one adapter of several.")
@click.argument("adapters", nargs=-1, required=True, metavar="FILE[#NAME][:WEIGHT]...")
@click.option("-o", "--out", type=FILE, metavar="OUT", help="The file or folder to write.")
@click.option("--rule", default="sum", show_default=True, metavar="NAME", help="How they become one; `loratk plugins` lists the rules.")
@click.option(
    "-R", "--rule-option", "rule_options", metavar="NAME=VALUE", multiple=True, help="An option of the rule, such as density=0.2."
)
@click.option("--weight", "layers", metavar="PATTERN=W[,W...]", multiple=True,
              help="Multiply the weights in layers that a pattern matches: one number for all, or one for each.")  # fmt: skip
@click.option("--rank", type=click.IntRange(1), metavar="N", help="No larger rank than N.")
@click.option("--ratio", type=float, metavar="X", help="Keep each singular value of at least X times the largest.")
@click.option("--energy", type=float, metavar="X", help="The least rank that keeps this share of the squared singular values.")
@click.option("--error", type=float, metavar="X", help="The least rank whose relative Frobenius error is at most X.")
@click.option("--dense", is_flag=True, help="Keep whole differences of weights, and round nothing away.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Decides what rules that drop by chance drop.")
@click.option("--name", default="combined", show_default=True, help="What the new adapter is called.")
@click.option("--base", type=FILE, help="The weights they were trained on, for methods that depend on them (DoRA, IA3, whole modules).")
@click.option("--base-order", type=click.Choice(["input-first", "output-first"]), help="Order of the base's axes. Default: by its store.")
@click.option("--any-base", is_flag=True, help="Take adapters that were made for different bases.")
@click.option("--rename", metavar="OLD=NEW", multiple=True, help="Another path for a module, or for all whose path begins with it.")
@click.option("--select", metavar="GLOB", multiple=True, help="Only modules whose path matches; may be repeated.")
@click.option("--from", "format", metavar="FORMAT", help="Format of the files. Default: by the content of each.")
@click.option("--to", metavar="FORMAT", help="Format of OUT. Default: by its suffix, else that of the first file.")
@click.option("-O", "--option", "options", metavar="NAME=VALUE", multiple=True, help="An option of a format; from:NAME or to:NAME.")
@click.option("--dry-run", is_flag=True, help="Show what would be written, and write nothing; OUT may be left out.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
@click.option("--force", is_flag=True, help="Replace OUT if it is there.")
def command(adapters: tuple[str, ...], **given: Any) -> None:
    """Make one adapter of several, each a file or folder of any format and its weight (1 if not given): a.h5:0.5 b:2 c.npz#name:-1.

    A rule works on what each adapter truly adds to each weight; a layer that one lacks counts as zeros there. The certificate tells how
    near the written factors are to what the rule exactly gives, and to the exact weighted sum. Without a rank sums keep all their ranks,
    and other rules take as many as the adapters have together. A file of several adapters gives them all, unless #NAME says which.
    """
    output: Path | None = given["out"]
    if output is None and not given["dry_run"]:
        raise click.UsageError("Missing option '-o'; without it only --dry-run makes sense.")
    if output is None and (idle := [f"--{key}" for key in ("to", "force") if given[key]]):
        raise click.UsageError(f"{', '.join(idle)} would have no effect without -o.")
    if given["base_order"] and not given["base"]:
        raise click.UsageError("--base-order is for --base.")
    from ..algebra.combining import combine
    from ..algebra.resizing import refuse_existing
    from ..exchange.base import opened_base

    plugins = registry()
    if output is not None:
        refuse_existing(output, given["force"])
    with opened_base(given["base"], plugins.stores, given["base_order"]) as base:
        sources, weights, writing, notes = _load([weighted(text) for text in adapters], output, base, given, plugins)
        cut = {key: given[key] for key in ("rank", "ratio", "energy", "error", "dense", "seed", "name", "any_base", "rule")}
        done = combine(
            [source.state for source in sources], weights, options=pairs("-R", given["rule_options"]),
            layers=_layers(given["layers"]), base=base, labels=[source.label for source in sources], registry=plugins, track=track, **cut,
        )  # fmt: skip
        if output is not None:
            notes += _write(done, output, given["dry_run"], {**writing, "base": base, "registry": plugins})
    for note in dict.fromkeys([*notes, *done.notes]):
        click.echo(f"- {clean(note)}", err=True)
    if given["as_json"]:
        click.echo(json.dumps(_plain(done, sources, weights, given["rule"], pairs("-R", given["rule_options"])), indent=2))
    else:
        _show(done)
    if output is not None and not given["dry_run"]:
        click.echo(f"Wrote {clean(done.state.name)} to {output}.", err=True)


def _layers(texts: Sequence[str]) -> dict[str, float | list[float]]:
    """The factors of each pattern."""
    found: dict[str, float | list[float]] = {}
    for text in texts:
        pattern, equals, numbers = text.rpartition("=")
        if not equals or not pattern or pattern in found:
            what = "is given twice for" if equals and pattern else "takes PATTERN=W or PATTERN=W,W,..., such as q_proj=0.5, found"
            raise click.UsageError(f"--weight {what} {pattern if pattern in found else text!r}.")
        try:
            each = [float(number) for number in numbers.split(",")]
        except ValueError:
            raise click.UsageError(f"--weight: {pattern!r} needs numbers, found {numbers!r}.") from None
        found[pattern] = each if len(each) > 1 else each[0]
    return found


def _load(
    specs: Sequence[tuple[Path, str | None, float]], output: Path | None, base: Any, given: dict[str, Any], plugins: Any
) -> tuple[list["Source"], list[float], dict[str, Any], list[str]]:
    """The adapters, their weights, what to write with, and the notes of reading."""
    from ..algebra.resizing import target_format
    from ..algebra.sources import Source, labelled, renamed_each
    from ..convert.adapters import split_options
    from ..exchange import detect_format, load_adapter
    from ..exchange.transform import select

    formats = [detect_format(path, format=given["format"], registry=plugins) for path, _, _ in specs]
    target = target_format(output, given["to"], formats[0], plugins) if output else None
    known = {name for found in formats for name in found.format.options}
    reads, writes = split_options(pairs("-O", given["options"]), {"from": known, "to": target.options if target else {}})
    sources, weights, notes = list[Source](), list[float](), list[str]()
    for (path, name, weight), found in zip(specs, formats, strict=True):
        own = {key: value for key, value in reads.items() if key in found.format.options}
        reading = load_adapter(path, format=found, adapters=name, base=base, options=own, registry=plugins)
        notes += [f"{path}: {note}" for note in reading.notes]
        sources += [Source(state.name, state, str(path)) for state in reading.states]
        weights += [weight] * len(reading.states)
    sources = labelled(renamed_each(sources, pairs("--rename", given["rename"])))
    if given["select"]:
        states = select([source.state for source in sources], given["select"])
        sources = [replace(source, state=state) for source, state in zip(sources, states, strict=True)]
    return sources, weights, {"format": target.name if target else None, "options": writes}, notes


def _write(done: "Combined", output: Path, dry: bool, given: dict[str, Any]) -> list[str]:
    from ..exchange import save_adapter

    with TemporaryDirectory() as folder:
        return save_adapter(Path(folder) / output.name if dry else output, done.state, **given)


def _plain(done: "Combined", sources: Sequence["Source"], weights: Sequence[float], rule: str, options: dict[str, str]) -> dict[str, Any]:
    adapters = [
        {"path": source.path, "name": source.state.name, "weight": weight} for source, weight in zip(sources, weights, strict=True)
    ]  # fmt: skip
    certificates = {"certificate": done.certificate.to_json(), "against_sum": done.against_sum.to_json()}
    return {"name": done.state.name, "rule": rule, "options": options, "adapters": adapters, **certificates}


def _show(done: "Combined") -> None:
    head = ("layer", "rank", "error", "energy kept", "off the sum", "|update|")
    rows = [
        (name, "-" if entry.rank is None else str(entry.rank), f"{entry.error:.2%}", f"{entry.energy:.2%}",
         f"{done.against_sum.modules[name].error:.2%}", f"{entry.norm:.4g}")
        for name, entry in done.certificate.modules.items()
    ]  # fmt: skip
    table(head, rows, right=head[1:])
    whole = done.certificate
    click.echo(
        f"All layers together: error {whole.error:.2%} against what the rule exactly gives, energy kept {whole.energy:.2%}, "
        f"{done.against_sum.error:.2%} off the exact sum."
    )
