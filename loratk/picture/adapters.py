"""A picture of adapters: how large the update of each layer is, and how its singular values fall."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..describe import AdapterReport, FileReport, ModuleReport
from ..errors import ConfigError
from .figure import blank, check, write

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#3b6fb6", "#d1603d", "#4f9d69", "#8d64b3", "#c2a033", "#3aa6a6", "#b8577f", "#6b6b6b")
ROWS = 36
"""Up to so many layers have a bar each; more of them become a map of blocks and kinds of layers."""


def draw(report: FileReport, path: str | Path) -> None:
    """Draw norms and spectra of all adapters of a report that has spectra, into a file of the kind that its suffix says.

    Raises DependencyError without matplotlib, ConfigError for another suffix, or where nothing can be drawn, StoreError where the file
    cannot be written; it is written at once or not at all.
    """
    check(path)
    adapters = [adapter for adapter in report.adapters or () if any(module.delta_norm is not None for module in adapter.modules)]
    if not adapters:
        raise ConfigError(f"'{report.path}' has no update whose size can be told, so there is nothing to draw; --base may tell it")
    heights = [max(3.4, 0.2 * min(_rows(adapter), ROWS) + 1.6) for adapter in adapters]
    figure = blank(12, sum(heights))
    axes = figure.subplots(len(adapters), 2, squeeze=False, height_ratios=heights, width_ratios=(3, 2))
    for adapter, (left, right) in zip(adapters, axes, strict=True):
        colours = _colours(adapter.modules)
        _norms(left, adapter, colours)
        _spectra(right, adapter, colours)
    write(figure, path)


def _kind(module: ModuleReport) -> str:
    """A module's path with the number of its block left out: layers of one kind have one colour, and one row of the map."""
    parts = module.name.split(".")
    return ".".join(part for part in parts if not part.isdecimal()) or module.name


def _block(module: ModuleReport) -> int:
    return next((int(part) for part in module.name.split(".") if part.isdecimal()), 0)


def _short(kind: str, kinds: Sequence[str]) -> str:
    """The shortest end of a kind's name that no other has."""
    parts = kind.split(".")
    for count in range(1, len(parts)):
        short = ".".join(parts[-count:])
        if sum(other == short or other.endswith("." + short) for other in kinds) == 1:
            return short
    return kind


def _colours(modules: Sequence[ModuleReport]) -> dict[str, str]:
    kinds = sorted({_kind(module) for module in modules})
    return {kind: COLOURS[place % len(COLOURS)] for place, kind in enumerate(kinds)}


def _sized(adapter: AdapterReport) -> list[ModuleReport]:
    return sorted(
        (module for module in adapter.modules if module.delta_norm is not None), key=lambda module: (_block(module), _kind(module))
    )


def _rows(adapter: AdapterReport) -> int:
    """Rows of the left picture: layers, or kinds of them in the map."""
    sized = _sized(adapter)
    return len(sized) if len(sized) <= ROWS else len({_kind(module) for module in sized})


def _norms(axes: Axes, adapter: AdapterReport, colours: dict[str, str]) -> None:
    sized = _sized(adapter)
    share = all(module.base_norm for module in sized)
    values = [100 * (m.delta_norm or 0) / m.base_norm if share and m.base_norm else m.delta_norm or 0 for m in sized]
    what = "norm of the update, % of its weight's" if share else "norm of the update"
    axes.set_title(f"{adapter.name}: {what}", loc="left", fontsize=10)
    if len(sized) > ROWS:
        _map(axes, sized, values)
        return
    places = range(len(sized))
    axes.barh(places, values, color=[colours[_kind(module)] for module in sized], height=0.7)
    axes.set_yticks(places, [module.name for module in sized], fontsize=7)
    axes.invert_yaxis()
    axes.margins(y=0.01)
    axes.grid(axis="x", color="#e4e4e4", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelsize=8)


def _map(axes: Axes, sized: Sequence[ModuleReport], values: Sequence[float]) -> None:
    """Norms as colours: a row for each kind of layer, a column for each block."""
    kinds = sorted({_kind(module) for module in sized})
    blocks = sorted({_block(module) for module in sized})
    grid = np.full((len(kinds), len(blocks)), np.nan)
    for module, value in zip(sized, values, strict=True):
        grid[kinds.index(_kind(module)), blocks.index(_block(module))] = value
    image = axes.imshow(grid, aspect="auto", cmap="viridis", interpolation="nearest")
    axes.set_yticks(range(len(kinds)), [_short(kind, kinds) for kind in kinds], fontsize=7)
    step = -(-len(blocks) // 16)
    axes.set_xticks(range(0, len(blocks), step), [str(block) for block in blocks[::step]], fontsize=7)
    axes.set_xlabel("block", fontsize=8)
    axes.set_facecolor("#eeeeee")
    assert axes.figure is not None
    axes.figure.colorbar(image, ax=axes, pad=0.01).ax.tick_params(labelsize=8)


def _spectra(axes: Axes, adapter: AdapterReport, colours: dict[str, str]) -> None:
    """Singular values as shares of the largest; spikes are drawn thick."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

    shown = [module for module in adapter.modules if module.spectrum is not None and any(module.spectrum.values)]
    spikes = sum(module.spectrum is not None and module.spectrum.spike for module in shown)
    said = f"; {spikes} of {len(shown)} in one direction" if spikes else ""
    axes.set_title(f"singular values, share of the largest{said}", loc="left", fontsize=10)
    if not shown:
        axes.set_axis_off()
        why = "none: no update is a product of factors alone"
        axes.text(0.5, 0.5, why, ha="center", va="center", transform=axes.transAxes, color="#6b6b6b")
        return
    handles: dict[str, Any] = {}
    for module in shown:
        assert module.spectrum is not None
        values = np.array(module.spectrum.values)
        thin: dict[str, Any] = {"linewidth": 1.2, "alpha": 0.7} if len(shown) <= ROWS else {"linewidth": 0.6, "alpha": 0.4}
        style = {"linewidth": 2.4, "alpha": 1.0, "zorder": 3.0} if module.spectrum.spike else thin
        heights = np.maximum(values / values[0], 1e-8)
        marker = "o" if len(values) == 1 or len(shown) <= ROWS else ""
        (line,) = axes.plot(range(1, len(values) + 1), heights, color=colours[_kind(module)], marker=marker, markersize=3, **style)
        handles.setdefault(_kind(module), line)
    axes.set_yscale("log")
    axes.set_ylim(max(1e-8, axes.get_ylim()[0]), 1.15)
    plain = FuncFormatter(lambda value, _: f"{value:g}" if value >= 1e-3 else f"{value:.0e}")
    axes.yaxis.set_major_formatter(plain)
    axes.yaxis.set_minor_formatter(plain if axes.get_ylim()[0] > 0.1 else NullFormatter())  # over many decades the powers of ten are enough
    axes.tick_params(which="both", labelsize=8)
    axes.set_xlabel("singular value", fontsize=8)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(color="#e4e4e4", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    if len(handles) <= 12:
        names = [_short(kind, list(handles)) for kind in handles]
        legend = axes.legend(list(handles.values()), names, frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
        for handle in legend.legend_handles:
            if handle is not None:
                handle.set(linewidth=2.0, alpha=1.0)
