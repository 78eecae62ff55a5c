"""`loratk inspect`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .context import registry
from .show import size, table

if TYPE_CHECKING:
    from ..describe import AdapterReport, FileReport


@click.command("inspect", short_help="Show what a file holds.")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def command(file: Path, as_json: bool) -> None:
    """Show what FILE holds: adapters with ranks, scaling and norms, or the arrays of a file of weights.

    The norms are Frobenius norms; that of the update is what the adapter adds to the weight.
    """
    from ..describe import describe

    report = describe(file, registry().stores)
    if as_json:
        click.echo(json.dumps(report.to_dict(), indent=2))
        return
    click.echo(f"{report.path}: {report.store}, {size(report.bytes)}, {_contents(report)}")
    for adapter in report.adapters or ():
        _adapter(adapter)
    if report.arrays:
        click.echo()
        table(("array", "shape", "dtype"), [(a.name, _shape(a.shape) or "()", a.dtype) for a in report.arrays])
    for name, text in (report.strings or {}).items():
        click.echo(f"{name}: {text}")


def _contents(report: "FileReport") -> str:
    if report.adapters is not None:
        return f"{len(report.adapters)} adapter{'s' * (len(report.adapters) != 1)}"
    return f"{len(report.arrays or ())} array{'s' * (len(report.arrays or ()) != 1)}, no adapters"


def _adapter(adapter: "AdapterReport") -> None:
    click.echo(f"\nadapter {adapter.name!r}: {adapter.parameters:,} parameters")
    known = {"written by loratk": adapter.version, "base": adapter.fingerprint[:12], **adapter.metadata}
    for key, value in known.items():
        if value:
            click.echo(f"  {key}: {value}")
    head = ("layer", "method", "shape", "rank", "alpha", "scaling", "|A|", "|B|", "|update|", "dtype", "parameters")
    rows = [
        (m.name, m.method, _shape(m.shape), _number(m.rank), _number(m.alpha), _number(m.scaling), _number(m.norms.get("lora_A")),
         _number(m.norms.get("lora_B")), _number(m.delta_norm), m.dtype, f"{m.parameters:,}")
        for m in adapter.modules
    ]  # fmt: skip
    table(head, rows, right=("rank", "alpha", "scaling", "|A|", "|B|", "|update|", "parameters"))


def _shape(shape: Any) -> str:
    return "-" if shape is None else " x ".join(map(str, shape))


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
