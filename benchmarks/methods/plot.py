"""The picture of `--plot`: accuracy against how many numbers train, and the loss by step."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .runs import Outcome

CURVES = ("LoRA", "PiSSA", "LoRA-GA", "LoRA+", "DoRA")
"""The losses drawn: those that claim to need fewer steps."""


def draw(file: Path, outcomes: Sequence[Outcome]) -> None:
    """Draw the outcomes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    for each in outcomes:
        left.plot(each.parameters, each.accuracy, "o", color="#3b6fb6", markersize=5)
        left.annotate(each.label, (each.parameters, each.accuracy), textcoords="offset points", xytext=(5, 3), fontsize=7)
    left.set(xscale="log", xlabel="trained numbers", ylabel="accuracy on held-out images, %")
    for each in outcomes:
        if each.label in CURVES:
            right.plot(_smooth(each.losses), label=each.label, linewidth=1.2)
    right.set(yscale="log", xlabel="step", ylabel="training loss")
    right.legend(frameon=False, fontsize="small")
    for axes in (left, right):
        axes.grid(color="#e4e4e4", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=110)
    pyplot.close(figure)


def _smooth(losses: Sequence[float], width: int = 7) -> np.ndarray:
    """The running mean, over as many steps as there are at the ends."""
    ones = np.ones(width)
    return np.asarray(np.convolve(losses, ones, "same") / np.convolve(np.ones(len(losses)), ones, "same"))
