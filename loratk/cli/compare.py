"""`loratk compare`."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from math import degrees
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .context import pairs, registry
from .show import clean, table, track

if TYPE_CHECKING:
    from ..algebra.energy import AdapterEnergy, LayerEnergy
    from ..algebra.plan import Plan
    from ..algebra.report import Interference, ModuleInterference, PairInterference

FILE = click.Path(path_type=Path)


@click.command("compare", short_help="Show whether adapters get in each other's way.")
@click.argument("files", type=FILE, nargs=-1, required=True)
@click.option("--adapter", "names", metavar="NAME", multiple=True, help="An adapter of the files; may be repeated. Default: all of them.")
@click.option("--base", type=FILE, help="The weights they were trained on: for methods that need them, and to look for intruders.")
@click.option("--base-order", type=click.Choice(["input-first", "output-first"]), help="Order of the base's axes. Default: by its store.")
@click.option("--no-intruders", is_flag=True, help="Do not look for intruders: it takes a dense decomposition of every weight.")
@click.option("--leading", type=click.IntRange(1), default=10, show_default=True, help="Look at so many singular vectors for intruders.")
@click.option("--threshold", type=click.FloatRange(0, 1, min_open=True), default=0.5, show_default=True,
              help="An intruder has no cosine of that much with any singular vector of the base.")  # fmt: skip
@click.option("--rename", metavar="OLD=NEW", multiple=True, help="Another path for a module, or for all whose path begins with it.")
@click.option("--from", "format", metavar="FORMAT", help="Format of the files. Default: by the content of each.")
@click.option("-O", "--option", "options", metavar="NAME=VALUE", multiple=True, help="An option of a format; for the files that have it.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the entries whose signs are looked at.")
@click.option("--top", type=click.IntRange(1), default=10, show_default=True, help="Show so many layers in each table; JSON has all.")
@click.option("--plot", type=FILE, metavar="PICTURE", help="Draw the report into a file, such as a .png or .svg. Needs matplotlib.")
@click.option("--dry-run", is_flag=True, help="Only list what would be compared, and what cannot be.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def command(
    files: tuple[Path, ...],
    base: Path | None,
    base_order: str | None,
    no_intruders: bool,
    leading: int,
    threshold: float,
    seed: int,
    top: int,
    plot: Path | None,
    dry_run: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Show how two or more adapters in FILES, files or folders of any format, lie to each other, without a model.

    For each two: the cosine of their updates, what they add up to, the angles between the spaces that they read and write, what of one's
    energy lies in the other's spaces, and how often they pull an entry in opposite directions. For each: where its energy is, spikes,
    layers that are zero, and with --base its intruders. To tell whether two adapters are the same there is `loratk diff`.
    """
    if (base_order or no_intruders) and not base:
        raise click.UsageError(f"{'--base-order' if base_order else '--no-intruders'} is for --base.")
    from ..algebra.interference import compare, plan
    from ..exchange.base import opened_base

    plugins = registry()
    asked: dict[str, Any] = {
        "names": given["names"], "format": given["format"], "options": pairs("-O", given["options"]),
        "rename": pairs("--rename", given["rename"]), "registry": plugins,
    }  # fmt: skip
    if plot is not None:
        from ..picture import check

        check(plot)
    with opened_base(base, plugins.stores, base_order) as opened:
        if dry_run:
            _plan(plan(files, base=opened, intruders=not no_intruders, **asked), plot, as_json)
            return
        report = compare(
            files, base=opened, intruders=not no_intruders, leading=leading, threshold=threshold, seed=seed, track=track, **asked
        )  # fmt: skip
    for note in report.notes:
        click.echo(f"- {clean(note)}", err=True)
    if plot is not None:
        from ..picture import draw_interference

        draw_interference(report, plot)
        click.echo(f"Drew {plot}.", err=True)
    if as_json:
        click.echo(json.dumps(report.to_dict(), indent=2))
    else:
        _show(report, top)


def _plan(found: "Plan", plot: Path | None, as_json: bool) -> None:
    for note in found.notes:
        click.echo(f"- {clean(note)}", err=True)
    if as_json:
        click.echo(json.dumps(asdict(found), indent=2))
        return
    for adapter in found.adapters:
        click.echo(f"adapter {clean(adapter.label)}{f', from {clean(adapter.path)}' if adapter.path else ''}: {_count(adapter.modules)}")
        _reasons(adapter.obstacles.items())
    for pair in found.pairs:
        click.echo(f"{clean(pair.a)} and {clean(pair.b)}: {_count(pair.modules)} would be compared")
        _alone(pair)
        _reasons((name, "; ".join(faults)) for name, faults in pair.not_compared.items())
    click.echo(f"Intruders would {'' if found.intruders else 'not '}be looked for.")
    if plot is not None:
        click.echo(f"{plot} would be drawn.")


def _show(report: "Interference", top: int) -> None:
    _adapters(report.adapters)
    if len(report.adapters) > 2:
        _matrix(report)
    for pair in report.pairs:
        _pair(pair, top)
    _kinds(report.adapters)
    for adapter in report.adapters:
        _energy(adapter, top)


def _adapters(adapters: Sequence["AdapterEnergy"]) -> None:
    head = ("adapter", "layers", "|update|", "spikes", "zero", "intruders", "file")
    rows = [
        (one.label, str(len(one.layers)), _number(one.norm), str(len(one.spikes)), str(len(one.zero)),
         "-" if one.intruders is None else str(one.intruders), one.path or "-")
        for one in adapters
    ]  # fmt: skip
    table(head, rows, right=head[1:6], spare=("file",))
    for one in adapters:
        if one.zero:
            click.echo(f"{clean(one.label)}: {len(one.zero)} of its updates are zero: {clean(', '.join(one.zero), 200)}")
        if one.biases:
            click.echo(f"{clean(one.label)}: changes biases too, which are not compared: {clean(', '.join(one.biases), 200)}")
        _reasons((f"{one.label}, {name}", f"not measured: {why}") for name, why in one.not_measured.items())
        _reasons((f"{one.label}, {name}", f"no intruders looked for: {why}") for name, why in one.no_intruders.items())


def _matrix(report: "Interference") -> None:
    click.echo("\ncosines of the whole updates")
    labels = [adapter.label for adapter in report.adapters]
    rows = [(label, *(_number(value) for value in row)) for label, row in zip(labels, report.matrix(), strict=True)]
    table(("", *labels), rows, right=labels)


def _pair(pair: "PairInterference", top: int) -> None:
    click.echo(f"\n{clean(pair.a)} and {clean(pair.b)}")
    compared = [module for module in pair.modules if module.compared]
    if compared:
        sum_, (a, b) = pair.sum, pair.shares["both"]
        click.echo(f"  cosine {_number(sum_.cosine)}: the sum has {_interference(sum_.interference)} energy than both apart")
        click.echo(f"  {_percent(a)} of the first's energy lies in the spaces of the second, {_percent(b)} the other way round")
        click.echo(f"  {_signs(pair.sign_conflicts, pair.sign_error)} of the entries have opposite signs")
        ranked = sorted(compared, key=lambda module: -_weight(module))
        head = ("layer", "cosine", "sum", "angle in", "angle out", "phi in", "phi out", "1st in 2nd", "2nd in 1st", "opposite")
        table(head, [_row(module) for module in ranked[:top]], right=head[1:], spare=("opposite", "angle in", "angle out"))
        _rest(len(ranked) - top)
    else:
        click.echo("  no module can be compared; --rename, --base or an option of a format may give names")
    _alone(pair)
    _reasons((name, "; ".join(faults)) for name, faults in pair.not_compared.items())


def _weight(module: "ModuleInterference") -> float:
    """How much of the pair's interference is in a module."""
    assert module.sum is not None
    return abs(module.sum.interference) * (module.sum.norms[0] ** 2 + module.sum.norms[1] ** 2)


def _row(module: "ModuleInterference") -> tuple[str, ...]:
    sum_, inputs, outputs, shares, signs = module.sum, module.inputs, module.outputs, module.shares, module.signs
    assert sum_ is not None  # it was compared
    assert inputs is not None
    assert outputs is not None
    assert shares is not None
    assert signs is not None
    angles = [f"{degrees(space.angles[0]):.3g}°" if space.angles else "-" for space in (inputs, outputs)]
    return (
        module.name, _number(sum_.cosine), f"{100 * sum_.interference:+.3g} %", *angles, f"{inputs.similarity:.2f}",
        f"{outputs.similarity:.2f}", *(_percent(share) for share in shares), _signs(signs.share, signs.error),
    )  # fmt: skip


def _kinds(adapters: Sequence["AdapterEnergy"]) -> None:
    """Energy by kind of layer, where a kind is more than one layer."""
    kinds = list(dict.fromkeys(kind for adapter in adapters for kind in adapter.kinds))
    if len(kinds) == len({layer.name for adapter in adapters for layer in adapter.layers}):
        return
    click.echo("\nenergy by kind of layer")
    labels = [adapter.label for adapter in adapters]
    rows = [(kind, *(_percent(adapter.kinds.get(kind)) for adapter in adapters)) for kind in kinds]
    table(("kind", *labels), rows, right=labels)


def _energy(adapter: "AdapterEnergy", top: int) -> None:
    click.echo(f"\nenergy of {clean(adapter.label)} by layer")
    ranked = sorted(adapter.layers, key=lambda layer: -layer.share)
    head = ["layer", "energy", "|update|", "effective rank", "first", "spike"]
    if adapter.intruders is not None:
        head.append("intruders")
    table(head, [_layer(layer)[: len(head)] for layer in ranked[:top]], right=head[1:5])
    _rest(len(ranked) - top)


def _layer(layer: "LayerEnergy") -> tuple[str, ...]:
    found = layer.intruders
    numbers = "-" if found is None else ", ".join(map(str, found.positions)) or "none"
    return (
        layer.name, _percent(layer.share), _number(layer.norm), f"{layer.spectrum.effective_rank:.3g}", _percent(layer.spectrum.first),
        "spike" if layer.spectrum.spike else "", numbers,
    )  # fmt: skip


def _alone(pair: Any) -> None:
    for label, names in ((pair.a, pair.only_a), (pair.b, pair.only_b)):
        if names:
            click.echo(f"  in {clean(label)} only: {clean(', '.join(names), 400)}")


def _reasons(found: Any) -> None:
    for name, why in found:
        first, *more = str(why).splitlines()
        click.echo(f"  {clean(name)}: {clean(first)}{' ...' if more else ''}")


def _rest(count: int) -> None:
    if count > 0:
        click.echo(f"... and {count} more (--top)")


def _count(modules: Sequence[str]) -> str:
    return f"{len(modules)} module{'s' * (len(modules) != 1)}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.3g} %"


def _interference(value: float) -> str:
    return f"{abs(100 * value):.3g} % {'more' if value >= 0 else 'less'}"


def _signs(share: float | None, error: float | None) -> str:
    if share is None:
        return "-"
    return f"{100 * share:.1f} %" if not error else f"{100 * share:.1f} ± {100 * error:.1f} %"
