"""A picture of the demonstration's training runs."""

from collections.abc import Mapping
from pathlib import Path

from ..errors import DependencyError, StoreError
from ..train import History

COLOURS = ("#555555", "#3b6fb6", "#d1603d")


def draw(histories: Mapping[str, History], start: Mapping[str, float], path: Path) -> None:
    """Draw loss and held-out accuracy of all runs side by side; `start` is what the accuracy was before the first epoch.

    Raises DependencyError without matplotlib, StoreError if the picture cannot be written.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise DependencyError("Drawing needs matplotlib, which is not installed. Run: python -m pip install 'loratk[plot]'") from error
    figure = Figure(figsize=(10, 4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    losses, scores = figure.subplots(1, 2)
    for (name, history), colour in zip(histories.items(), COLOURS, strict=False):
        before = [(0.0, start[name])] if name in start else []
        epochs, values = zip(*before, *zip(history["epoch"], history["val_accuracy"], strict=True), strict=True)
        losses.plot(history["epoch"], history["loss"], color=colour, label=name)
        scores.plot(epochs, [100 * value for value in values], color=colour, marker="o", markersize=3, label=name)
    losses.set(title="training loss", xlabel="epoch", yscale="log")
    scores.set(title="accuracy on held-out images, %", xlabel="epoch", ylim=(0, 101))
    for axes in (losses, scores):
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(color="#e4e4e4", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
    scores.legend(frameon=False, loc="lower right")
    try:
        figure.savefig(path)
    except OSError as error:
        raise StoreError(f"cannot write '{path}': {error.strerror or error}") from error
