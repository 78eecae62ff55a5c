"""A figure and its file, without a window and without matplotlib's global state."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ConfigError, DependencyError
from ..io import atomic_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def check(path: str | Path) -> str:
    """The kind of picture that a path's suffix says. Raises DependencyError without matplotlib, ConfigError for another suffix."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise DependencyError("Drawing needs matplotlib, which is not installed. Run: python -m pip install 'loratk[plot]'") from error
    kind = Path(path).suffix.lower().removeprefix(".")
    if kind not in (known := Figure().canvas.get_supported_filetypes()):
        raise ConfigError(f"cannot draw '{path}': the suffix must be one of {', '.join(f'.{end}' for end in sorted(known))}")
    return kind


def blank(width: float, height: float) -> Figure:
    """An empty figure of a size in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def write(figure: Figure, path: str | Path) -> None:
    """Write a figure at once or not at all. Raises as `check` does, and StoreError where the file cannot be written."""
    kind = check(path)
    with atomic_file(Path(path)) as file:
        figure.savefig(file, format=kind)
