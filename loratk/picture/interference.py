"""A picture of how adapters lie to each other: cosines by layer and pair, energy by layer, and the matrix of all pairs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..algebra.report import Interference
from ..errors import ConfigError
from .figure import blank, check, write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage

LABELS = 40
"""Up to so many layers are all named at the side; of more, some."""


def draw_interference(report: Interference, path: str | Path) -> None:
    """Draw a report into a file of the kind that its suffix says.

    Left the cosine of each two adapters in each layer, in the middle the share of each adapter's energy, right the cosines of whole
    adapters. What could not be compared stays grey. Raises DependencyError without matplotlib, ConfigError for another suffix, or where no
    layer was measured, StoreError where the file cannot be written; it is written at once or not at all.
    """
    check(path)
    layers = _order({layer.name for adapter in report.adapters for layer in adapter.layers})
    if not layers:
        raise ConfigError("no update could be measured, so there is nothing to draw; --base may tell it")
    place = {name: number for number, name in enumerate(layers)}
    cosines, energies = (np.full((len(layers), len(items)), np.nan) for items in (report.pairs, report.adapters))
    for column, pair in enumerate(report.pairs):
        for module in pair.modules:
            if module.sum is not None and module.sum.cosine is not None:
                cosines[place[module.name], column] = module.sum.cosine
    for column, adapter in enumerate(report.adapters):
        for layer in adapter.layers:
            energies[place[layer.name], column] = 100 * layer.share
    labels = [_short(adapter.label, 24) for adapter in report.adapters]
    widths = (0.35 * len(report.pairs) + 2, 0.35 * len(labels) + 2, 0.45 * len(labels) + 2)
    named = max(len(_short(name)) for name in layers)
    figure = blank(sum(widths) + 0.07 * named + 1, max(3.6, 0.16 * min(len(layers), LABELS * 2) + 1.8))
    left, middle, right = figure.subplots(1, 3, width_ratios=widths)
    pairs = [f"{_short(pair.a, 24)} / {_short(pair.b, 24)}" for pair in report.pairs]
    _map(left, cosines, [_short(name) for name in layers], pairs, "cosine", ("RdBu_r", -1.0, 1.0))
    _map(middle, energies, [""] * len(layers), labels, "energy, %", ("viridis", 0.0, float(np.nanmax(energies))))
    matrix = np.array([[np.nan if value is None else value for value in row] for row in report.matrix()], np.float64)
    _map(right, matrix, labels, labels, "cosine of all", ("RdBu_r", -1.0, 1.0))
    if len(labels) <= 8:
        for (row, column), value in np.ndenumerate(matrix):
            text = "-" if np.isnan(value) else f"{value:.2f}"
            right.text(column, row, text, ha="center", va="center", fontsize=7, color="white" if abs(value) > 0.6 else "black")
    write(figure, path)


def _short(name: str, limit: int = 60) -> str:
    """The end of a name, which tells most: a long one would leave no room for the picture."""
    return name if len(name) <= limit else f"...{name[3 - limit :]}"


def _order(names: set[str]) -> list[str]:
    """Block 10 after block 9."""
    return sorted(
        names, key=lambda name: [(int(part), "") if part.isdecimal() and len(part) < 10 else (-1, part) for part in name.split(".")]
    )


def _map(
    axes: Axes, grid: np.ndarray, rows: Sequence[str], columns: Sequence[str], title: str, colours: tuple[str, float, float]
) -> AxesImage:
    """Numbers as colours."""
    name, low, high = colours
    image = axes.imshow(grid, aspect="auto", cmap=name, vmin=low, vmax=high or 1.0, interpolation="nearest")
    axes.set_title(title, loc="left", fontsize=10)
    step = -(-len(rows) // LABELS)
    shown = range(0, len(rows), step) if any(rows) else range(0)
    axes.set_yticks(shown, [rows[row] for row in shown], fontsize=7)
    axes.set_xticks(range(len(columns)), columns, fontsize=7, rotation=90)
    axes.set_facecolor("#dddddd")
    assert axes.figure is not None
    axes.figure.colorbar(image, ax=axes, pad=0.02).ax.tick_params(labelsize=7)
    return image
