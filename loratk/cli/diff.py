"""`loratk diff`."""

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .context import pairs, registry
from .show import clean, table, track

if TYPE_CHECKING:
    from ..exchange import Comparison, ModuleDifference

FILE = click.Path(path_type=Path)
DIFFERENT = 3


@click.command("diff", short_help="Tell whether two adapters are the same.")
@click.argument("a", type=FILE)
@click.argument("b", type=FILE)
@click.option("--tolerance", type=click.FloatRange(0), default=1e-6, show_default=True, help="What still counts as the same.")
@click.option("--adapter-a", metavar="NAME", help="The adapter of A. Default: each, with the one of its name in B.")
@click.option("--adapter-b", metavar="NAME", help="The adapter of B.")
@click.option("--rename", metavar="OLD=NEW", multiple=True, help="Another path for a module of A, or for all whose path begins with it.")
@click.option("--from-a", metavar="FORMAT", help="Format of A. Default: by its content.")
@click.option("--from-b", metavar="FORMAT", help="Format of B. Default: by its content.")
@click.option("--base", type=FILE, help="The weights that both were trained on, where a format needs their names.")
@click.option("-O", "--option", "options", metavar="NAME=VALUE", multiple=True, help="An option of either format; a:NAME or b:NAME.")
@click.option("--all", "every", is_flag=True, help="Show the modules that are the same too.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def command(a: Path, b: Path, tolerance: float, every: bool, as_json: bool, **given: Any) -> None:
    """Tell whether the adapters in A and B, files or folders of any format, add the same to each weight.

    What they add is compared, not how it is stored: ranks, scalings and dtypes may differ. The difference of a module is the norm of the
    difference over the larger of the two norms, computed from the factors. Exit codes: 0 the same within the tolerance, 3 different.
    """
    from ..exchange.comparison import diff, paired

    left, right = _load(a, b, given)
    both, only_a, only_b = paired(left, right)
    done = [diff(one, two, tolerance=tolerance, track=track) for one, two in both]
    same = not only_a and not only_b and all(found.same for found in done)
    if as_json:
        report = {"same": same, "tolerance": tolerance, "only_a": only_a, "only_b": only_b, "adapters": [_plain(found) for found in done]}
        click.echo(json.dumps(report, indent=2))
    else:
        for found in done:
            _show(found, every)
        for path, names in ((a, only_a), (b, only_b)):
            for name in names:
                click.echo(f"adapter {name!r} is in {path} only")
    click.get_current_context().exit(0 if same else DIFFERENT)


def _load(a: Path, b: Path, given: dict[str, Any]) -> tuple[Any, Any]:
    """The adapters of both."""
    from ..convert.adapters import split_options
    from ..exchange import detect_format, load_adapter
    from ..exchange.base import opened_base

    plugins = registry()
    one, two = (detect_format(path, format=given[key], registry=plugins) for path, key in ((a, "from_a"), (b, "from_b")))
    ours, theirs = split_options(pairs("-O", given["options"]), {"a": one.format.options, "b": two.format.options})
    rename = pairs("--rename", given["rename"])
    with opened_base(given["base"], plugins.stores) as base:
        left = load_adapter(
            a, format=one, adapters=given["adapter_a"], base=base, options=ours, rename=rename, registry=plugins
        )  # fmt: skip
        right = load_adapter(b, format=two, adapters=given["adapter_b"], base=base, options=theirs, registry=plugins)
    for path, reading in ((a, left), (b, right)):
        for note in reading.notes:
            click.echo(f"- {path}: {clean(note)}", err=True)
    return left.states, right.states


def _plain(found: "Comparison") -> dict[str, Any]:
    modules = [{**asdict(module), "relative": module.relative if math.isfinite(module.relative) else None} for module in found.modules]
    return {"names": list(found.names), "same": found.same, "identical": found.identical, "modules": modules,
            "only_a": found.only_a, "only_b": found.only_b}  # fmt: skip


def _show(found: "Comparison", every: bool) -> None:
    one, two = found.names
    click.echo(f"adapter {one!r}" if one == two else f"adapters {one!r} and {two!r}")
    shown = found.modules if every else found.differing
    if shown:
        head = ("layer", "difference", "cosine", "|update| in A", "in B", "what differs")
        table(head, [_row(module, found.tolerance) for module in shown], right=head[1:5])
    for side, names in (("A", found.only_a), ("B", found.only_b)):
        for name in names:
            click.echo(f"{clean(name)} is in {side} only")
    click.echo(_verdict(found))


def _row(module: "ModuleDifference", tolerance: float) -> tuple[str, ...]:
    large = [f"{part} {value:.2g}" for part, value in module.parts.items() if not value <= tolerance and len(module.parts) > 1]
    norms = module.norms or (None, None)
    what = module.faults or [*large, *(f"({remark})" for remark in module.remarks)]
    difference = f"{module.relative:.2g}" if math.isfinite(module.relative) else "-"
    return (module.name, difference, *(_number(value) for value in (module.cosine, *norms)), "; ".join(what))


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _verdict(found: "Comparison") -> str:
    count = f"{len(found.modules)} module{'s' * (len(found.modules) != 1)} in both"
    if found.identical:
        return f"The same, bit by bit: {count}."
    worst = max((module.relative for module in found.modules), default=0.0)
    if found.same:
        return f"The same within {found.tolerance:g}: {count}, the largest difference is {worst:.2g}."
    alone = len(found.only_a) + len(found.only_b)
    if not found.modules:
        return (
            f"Different: none of {alone} modules has a namesake in the other; --rename, --base or an option of the format may give names."
        )
    return f"Different: {len(found.differing)} of {count}" + (f", and {alone} in one only." if alone else ".")
