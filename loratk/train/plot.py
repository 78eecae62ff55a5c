"""A picture of a training run."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import DependencyError, StateError, StoreError

if TYPE_CHECKING:
    from .history import History

TRAIN, HELD, BEST = "#3b6fb6", "#d1603d", "#555555"


def plot_history(history: "History", path: str | Path) -> None:
    """Draw the loss, and each metric beside it, over the epochs. Raises DependencyError without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise DependencyError("Drawing needs matplotlib, which is not installed. Run: python -m pip install 'loratk[plot]'") from error
    if not history.epochs:
        raise StateError("There is nothing to draw yet: the history has no epoch. Call fit() first.")
    names = ["loss", *(name for name in history.names() if name in _metrics(history))]
    columns = min(len(names), 3)
    rows = math.ceil(len(names) / columns)
    figure = Figure(figsize=(5.2 * columns, 3.8 * rows), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    for name, axes in zip(names, figure.subplots(rows, columns, squeeze=False).flat, strict=False):
        _panel(axes, history, name)
    for axes in figure.axes[len(names) :]:
        axes.remove()
    try:
        figure.savefig(path)
    except OSError as error:
        raise StoreError(f"cannot write '{path}': {error.strerror or error}") from error
    except ValueError as error:
        raise StoreError(f"cannot write '{path}': {error}") from error


def _metrics(history: "History") -> list[str]:
    fixed = ("epoch", "step", "rows", "seconds", "loss")
    return [name for name in history.names() if name not in fixed and not name.startswith("val_")]


def _panel(axes: Any, history: "History", name: str) -> None:
    epochs = np.array(history["epoch"])
    if name == "loss" and len(history.steps) > len(epochs):
        axes.plot(*_thinned(*_steps(history)), color=TRAIN, alpha=0.25, linewidth=0.8, label="each step")
    few = len(epochs) <= 30
    axes.plot(epochs, history[name], color=TRAIN, linewidth=1.8, marker="o" if few else None, markersize=3.5, label="training")
    if f"val_{name}" in history.names():
        values = np.array(history[f"val_{name}"])
        axes.plot(epochs, values, color=HELD, linewidth=1.8, marker="o" if few else None, markersize=3.5, label="validation")
        _mark_best(axes, history, f"val_{name}")
    axes.set_title(name, fontsize=11, loc="left")
    axes.set_xlabel("epoch")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(color="#e4e4e4", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    means = [value for value in history[name] if math.isfinite(value)]
    if name == "loss" and means and 0 < 20 * min(means) < max(means):
        axes.set_yscale("log")
    axes.legend(frameon=False, fontsize=9)


def _mark_best(axes: Any, history: "History", monitor: str) -> None:
    from ..errors import LoratkError

    try:
        best = history.best(monitor)
    except LoratkError:  # which way is better is not known, or all are NaN
        return
    axes.plot(best["epoch"], best[monitor], "o", markersize=9, fillstyle="none", color=BEST, label=f"best: {best[monitor]:.4g}")


def _steps(history: "History") -> tuple[np.ndarray, np.ndarray]:
    """Where each step lies on the axis of epochs (epoch e ends at e), and its loss."""
    epochs = np.array([record["epoch"] for record in history.steps])
    ends = np.array([record["step"] for record in history.epochs])
    steps = np.array([record["step"] for record in history.steps])
    firsts = np.concatenate([[0], ends])
    last = np.append(ends, max(steps[-1], ends[-1] + np.diff(firsts)[-1]))  # an unfinished epoch is taken to be as long as the one before
    start, end = firsts[epochs - 1], last[epochs - 1]
    return epochs - 1 + (steps - start) / (end - start), np.array([record["loss"] for record in history.steps])


def _thinned(x: np.ndarray, y: np.ndarray, most: int = 4000) -> tuple[np.ndarray, np.ndarray]:
    """Means over runs of neighbours, so that a line has at most so many points."""
    run = -(-len(x) // most)
    cuts = np.arange(0, len(x), run)
    sizes = np.diff([*cuts, len(x)])
    return np.add.reduceat(x, cuts) / sizes, np.add.reduceat(y, cuts) / sizes
