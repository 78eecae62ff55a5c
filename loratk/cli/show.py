"""How results are shown: tables drawn with rich on a terminal, and aligned with blanks anywhere else."""

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[str] = (), spare: Sequence[str] = ()) -> None:
    """Print a table; the columns named in `right` are aligned at the right, those in `spare` go first where a terminal is too narrow."""
    rows = [[clean(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    if sys.stdout.isatty():
        _drawn(head, rows, widths, right, spare)
        return
    for row in (head, *rows):
        cells = (cell.rjust(width) if name in right else cell.ljust(width) for cell, width, name in zip(row, widths, head, strict=True))
        click.echo("  ".join(cells).rstrip())


def _drawn(head: Sequence[str], rows: Sequence[Sequence[str]], widths: Sequence[int], right: Sequence[str], spare: Sequence[str]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    needed, left_out = dict(zip(head, widths, strict=True)), []
    for name in spare:
        if sum(needed.values()) + 3 * len(needed) > console.width and needed.pop(name, None) is not None:
            left_out.append(name)
    drawn = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
    for name in needed:
        drawn.add_column(name, justify="right" if name in right else "left", overflow="fold")
    for row in rows:
        drawn.add_row(*(Text(cell) for name, cell in zip(head, row, strict=True) if name in needed))
    console.print(drawn)
    if left_out:
        click.echo(f"Not shown for want of width: {', '.join(left_out)}.")


def results(done: Any, notes: Iterable[str], show: Callable[[Any], None], *, as_json: bool, wrote: str | None) -> None:
    """Notes to standard error, the result as JSON (its `to_json`) or as `show` prints it, and what was written and where, if it was."""
    for note in notes:
        click.echo(f"- {clean(note)}", err=True)
    if as_json:
        click.echo(json.dumps(done.to_json(), indent=2))
    else:
        show(done)
    if wrote is not None:
        click.echo(f"Wrote {clean(wrote)}.", err=True)


def clean(text: str, limit: int | None = None) -> str:
    """Text from a file so that it cannot steer the terminal: control characters as escapes; cut to a length if one is given."""
    shown = "".join(character if character.isprintable() else character.encode("unicode_escape", "replace").decode() for character in text)
    return shown if limit is None or len(shown) <= limit else f"{shown[: limit - 4]} ..."


def size(count: float) -> str:
    """Bytes for people: 1536 -> '1.5 KiB'."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            break
        count /= 1024
    return f"{count:,.0f} {unit}" if unit == "bytes" else f"{count:,.1f} {unit}"


def track(items: Sequence[Any], what: str) -> Iterable[Any]:
    """The items, with a bar on standard error while they are worked on, if that is a terminal and there is time to see it."""
    if not sys.stderr.isatty() or len(items) < 2:
        yield from items
        return
    from rich.console import Console
    from rich.progress import track as bar

    yield from bar(items, what, console=Console(stderr=True), transient=True)


@contextmanager
def working(what: str) -> Iterator[None]:
    """A sign of life on standard error while something works whose length is not known, if that is a terminal."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(what):
        yield


@contextmanager
def counting(what: str) -> Iterator[Callable[[str, int], None]]:
    """A function to be told the name of each thing that is done next, and how many there are: a bar, if standard error is a terminal."""
    if not sys.stderr.isatty():
        yield lambda name, count: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=None)
        yield lambda name, count: progress.update(task, total=count, advance=1)
