"""The picture of `--plot`: time of a LoRA linear layer's forward and backward against its rows and against its rank."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .layer import Layer

ROWS = (1, 4, 16, 64, 256, 1024, 4096)
RANKS = (1, 2, 4, 8, 16, 32, 64, 128)
STYLE = {"ours": ("loratk", "o-"), "peft": ("PEFT on PyTorch", "s-"), "floor": ("the bare frozen products, by the faster BLAS", "k--")}

Figures = Mapping[str, float | None]


def plot(file: Path, measure: Callable[[Layer], Figures]) -> None:
    """Draw the picture; `measure` gives milliseconds by "ours", "peft" (or None) and "floor"."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    by_rows = [measure(Layer(f"plot-rows-{rows}", rows)) for rows in ROWS]
    by_rank = [measure(Layer(f"plot-rank-{rank}", 512, rank=rank)) for rank in RANKS]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    _curves(left, ROWS, by_rows, "rows, rank 16")
    _curves(right, RANKS, by_rank, "rank, 512 rows")
    left.set_ylabel("milliseconds")
    left.legend(frameon=False, fontsize="small")
    figure.suptitle("LoRA linear 1024x1024, forward and backward", fontsize="medium")
    figure.savefig(file, dpi=110)
    pyplot.close(figure)


def _curves(axes: Any, sizes: Sequence[int], figures: Sequence[Figures], label: str) -> None:
    from matplotlib.ticker import LogLocator

    for way, (name, style) in STYLE.items():
        times = [found[way] for found in figures]
        if None not in times:
            axes.plot(sizes, times, style, label=name, markersize=4, linewidth=1.2)
    axes.set(xscale="log", yscale="log", xlabel=label, xticks=sizes, xticklabels=[str(size) for size in sizes])
    axes.minorticks_off()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.grid(alpha=0.3)
