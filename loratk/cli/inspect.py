"""`loratk inspect`."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .context import pairs, registry
from .show import clean, size, table, track

if TYPE_CHECKING:
    from ..describe import AdapterReport, FileReport, ModuleReport

FILE = click.Path(path_type=Path)
LIMIT = 300  # characters of a piece of metadata; --json shows all of them


@click.command("inspect", short_help="Show what a file holds.")
@click.argument("file", type=FILE)
@click.option("--from", "format", metavar="FORMAT", help="Format of FILE. Default: by its content.")
@click.option("--base", type=FILE, help="The weights the adapters were trained on: for names, and to show updates beside them.")
@click.option("--base-order", type=click.Choice(["input-first", "output-first"]), help="Order of the base's axes. Default: by its store.")
@click.option("--spectrum", is_flag=True, help="Show the singular values of each update, and what they say.")
@click.option("--plot", type=FILE, metavar="PICTURE", help="Draw norms and spectra into a file, such as a .png or .svg. Needs matplotlib.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
@click.option("-O", "--option", "options", metavar="NAME=VALUE", multiple=True, help="An option of the format; may be repeated.")
def command(
    file: Path,
    format: str | None,
    base: Path | None,
    base_order: str | None,
    spectrum: bool,
    plot: Path | None,
    as_json: bool,
    options: tuple[str, ...],
) -> None:
    """Show what FILE, a file or folder of any format, holds: adapters, or the arrays of a file of weights.

    Of adapters it shows the format and the evidence for it, layers, ranks, scalings and where they come from, norms, metadata, and what is
    worth a second look. The norms are Frobenius norms; that of the update is what the adapter adds to the weight.
    """
    if base_order and not base:
        raise click.UsageError("--base-order is for --base.")
    from ..describe import describe
    from ..exchange.base import opened_base

    plugins, given = registry(), pairs("-O", options)
    with opened_base(base, plugins.stores, base_order) as opened:
        report = describe(
            file, format=format, base=opened, options=given, spectra=spectrum or plot is not None, registry=plugins, track=track
        )  # fmt: skip
    if report.adapters is None and (idle := [name for name, on in {"--base": base, "--spectrum": spectrum, "--plot": plot}.items() if on]):
        raise click.UsageError(f"'{file}' holds no adapters, so {', '.join(idle)} would have no effect.")
    if plot is not None:
        from ..picture import draw

        draw(report, plot)
        click.echo(f"Drew {plot}.", err=True)
    if as_json:
        click.echo(json.dumps(report.to_dict(), indent=2))
    else:
        _show(report, spectrum)


def _show(report: "FileReport", spectrum: bool) -> None:
    click.echo(f"{report.path}: {report.format}, {size(report.bytes)}, {_contents(report)}")
    for line in (*report.evidence.splitlines()[: None if report.adapters else 1], *report.notes):
        click.echo(f"  {clean(line)}")
    for adapter in report.adapters or ():
        _adapter(adapter, spectrum)
    if report.arrays:
        click.echo()
        table(("array", "shape", "dtype"), [(a.name, _shape(a.shape) or "()", a.dtype) for a in report.arrays])
    for name, text in (report.strings or {}).items():
        click.echo(f"{clean(name)}: {clean(text, LIMIT)}")


def _contents(report: "FileReport") -> str:
    if report.adapters is not None:
        return f"{len(report.adapters)} adapter{'s' * (len(report.adapters) != 1)}"
    return f"{len(report.arrays or ())} array{'s' * (len(report.arrays or ()) != 1)}, no adapters"


def _adapter(adapter: "AdapterReport", spectrum: bool) -> None:
    click.echo(f"\nadapter {adapter.name!r}: {adapter.parameters:,} parameters")
    for line in adapter.scales:
        click.echo(f"  {clean(line)}")
    for line in adapter.cautions:
        click.echo(f"  {click.style('caution:', fg='yellow', bold=True)} {clean(line)}")
    known = {"written by loratk": adapter.version, "base": adapter.fingerprint[:12], **adapter.metadata}
    for key, value in known.items():
        if value:
            click.echo(f"  {clean(key)}: {clean(value, LIMIT)}")
    _columns(adapter.modules, NORMS)
    if spectrum:
        click.echo()
        if measured := [module for module in adapter.modules if module.spectrum]:
            _columns(measured, SPECTRUM)
        if left := [module.name for module in adapter.modules if not module.spectrum]:
            click.echo(f"No spectrum (it is not finite, or not a product of factors alone): {clean(', '.join(left))}")


def _columns(modules: Sequence["ModuleReport"], columns: dict[str, Any]) -> None:
    """A table of those columns that have something in them."""
    cells = {head: [text(module) for module in modules] for head, text in columns.items()}
    kept = {head: column for head, column in cells.items() if head not in OPTIONAL or any(cell not in ("", "-") for cell in column)}
    right = [head for head in kept if head not in ("layer", "type", "method", "shape", "dtype", "", "% of energy")]
    table(list(kept), list(zip(*kept.values(), strict=True)), right=right, spare=SPARE)


def _shape(shape: Any) -> str:
    return "-" if shape is None else " x ".join(map(str, shape))


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _share(module: "ModuleReport") -> str:
    return "-" if module.delta_norm is None or not module.base_norm else f"{100 * module.delta_norm / module.base_norm:.3g} %"


def _energies(module: "ModuleReport") -> str:
    """Shares of the energy in percent, value by value, up to 99 % of it or eight of them."""
    assert module.spectrum is not None
    values = module.spectrum.values
    total = sum(value**2 for value in values) or 1.0
    shown = [f"{100 * value**2 / total:.0f}" for value in values[: min(8, max(1, module.spectrum.most))]]
    return " ".join(shown) + (" ..." if len(values) > len(shown) else "")


NORMS = {
    "layer": lambda module: module.name,
    "type": lambda module: module.layer_type or "-",
    "method": lambda module: module.method,
    "shape": lambda module: _shape(module.shape),
    "rank": lambda module: _number(module.rank),
    "alpha": lambda module: _number(module.alpha),
    "scaling": lambda module: _number(module.scaling),
    "|A|": lambda module: _number(module.norms.get("lora_A")),
    "|B|": lambda module: _number(module.norms.get("lora_B")),
    "|update|": lambda module: _number(module.delta_norm),
    "of |W|": _share,
    "dtype": lambda module: module.dtype,
    "parameters": lambda module: f"{module.parameters:,}",
}
SPARE = ("parameters", "type", "dtype", "|A|", "|B|", "method", "50 % in", "% of energy", "largest", "shape", "alpha")
OPTIONAL = ("type", "of |W|", "")
SPECTRUM = {
    "layer": lambda module: module.name,
    "rank": lambda module: str(len(module.spectrum.values)),
    "effective rank": lambda module: f"{module.spectrum.effective_rank:.3g}",
    "largest": lambda module: _number(module.spectrum.values[0] if module.spectrum.values else 0.0),
    "50 % in": lambda module: str(module.spectrum.half),
    "99 % in": lambda module: str(module.spectrum.most),
    "% of energy": _energies,
    "": lambda module: "spike" if module.spectrum.spike else "",
}
