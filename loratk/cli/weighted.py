"""An adapter and its weight on the command line: FILE[#NAME][:WEIGHT]."""

import math
from pathlib import Path

import click


def weighted(text: str) -> tuple[Path, str | None, float]:
    """The path, the adapter's name or None, and the weight, 1 without one; what is there as it stands is a path, whatever is in it.

    Raises UsageError for a weight that is no finite number, behind a path that is there.
    """
    if Path(text).exists():
        return Path(text), None, 1.0
    head, _, number = text.rpartition(":")
    weight = _number(number) if head else math.nan
    if not math.isfinite(weight):
        if head and Path(_parted(head)[0]).is_file():
            raise click.UsageError(f"The weight in {text!r} must be a finite number, found {number!r}.")
        head, weight = text, 1.0
    path, name = _parted(head)
    return Path(path), name, weight


def _parted(text: str) -> tuple[str, str | None]:
    """FILE#NAME as both, or the whole as a file: if there is such a file, or no name."""
    path, mark, name = text.rpartition("#")
    return (path, name) if mark and path and name and not Path(text).exists() else (text, None)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
