"""Measures of how good outputs are, gathered batch by batch.

A metric is any function from the outputs and targets of a batch (NumPy arrays) to a sum and a count: its value over many
batches is the sum of sums over the sum of counts, so the size of the batches does not matter. Where the value is another
function of the sums, say which with a `Metric`.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..autograd import Tensor
from ..errors import ConfigError, ShapeError, UnknownNameError, choices

Sums = Callable[[Any, Any], Sequence[float]]


def ratio(total: float, count: float) -> float:
    """total / count, NaN if nothing was counted."""
    return total / count if count else math.nan


@dataclass(frozen=True)
class Metric:
    """A measure: `sums(outputs, targets)` of a batch are added up over batches, and `value(*sums)` is the number reported."""

    name: str
    sums: Sums
    value: Callable[..., float] = ratio


def accuracy(outputs: Any, targets: Any) -> tuple[float, float]:
    """Share of rows whose largest output is at the label: (..., k), integers (...,). Negative labels do not count."""
    if outputs.shape[:-1] != targets.shape:
        raise ShapeError(f"accuracy needs outputs (..., k) and labels (...,), found {outputs.shape} and {targets.shape}.")
    counted = targets >= 0
    return float(np.sum((outputs.argmax(-1) == targets) & counted)), float(np.sum(counted))


def mae(outputs: Any, targets: Any) -> tuple[float, float]:
    """Mean of |output - target| over all entries."""
    _same_shape("mae", outputs, targets)
    return float(np.abs(outputs - targets).sum(dtype=np.float64)), float(targets.size)


def _r2_sums(outputs: Any, targets: Any) -> tuple[float, float, float, float]:
    _same_shape("r2", outputs, targets)
    t = targets.astype(np.float64)
    return float(((outputs - t) ** 2).sum()), float(t.sum()), float((t * t).sum()), float(t.size)


def _r2_value(residual: float, total: float, squares: float, count: float) -> float:
    spread = squares - total * total / count if count else 0.0
    return 1 - residual / spread if spread > 0 else math.nan


r2 = Metric("r2", _r2_sums, _r2_value)
"""Coefficient of determination, 1 - sum (output - target)^2 / sum (target - mean target)^2; NaN if all targets are equal."""

RESERVED = ("epoch", "step", "loss", "lr", "rows", "seconds", "grad_norm")


def _same_shape(name: str, outputs: Any, targets: Any) -> None:
    if outputs.shape != targets.shape:
        raise ShapeError(f"{name} needs outputs and targets of one shape, found {outputs.shape} and {targets.shape}.")


def as_metrics(metrics: Iterable[Sums | Metric] | Mapping[str, Sums | Metric]) -> list[Metric]:
    """Metrics from functions, named by their names, or from a mapping of names to functions. Raises ConfigError."""
    named: Iterable[tuple[str | None, Any]] = metrics.items() if isinstance(metrics, Mapping) else [(None, metric) for metric in metrics]
    found: list[Metric] = []
    for key, metric in named:
        if isinstance(metric, Metric):
            found.append(Metric(key or metric.name, metric.sums, metric.value))
        elif callable(metric):
            found.append(Metric(key or str(getattr(metric, "__name__", type(metric).__name__)), metric))
        else:
            raise ConfigError(f"A metric must be a function (outputs, targets) -> (sum, count) or a Metric, found {metric!r}.")
    names = [metric.name for metric in found]
    for name in names:
        if name in RESERVED or name.startswith("val_") or names.count(name) > 1 or name == "<lambda>":
            raise ConfigError(
                f"A metric cannot be called {name!r}: names must be unique, must not begin with 'val_' and must not be one of "
                f"{choices(RESERVED)}. Pass a mapping name -> function to name it."
            )
    return found


class Totals:
    """The loss and metrics of the batches so far. Sums are Python floats, added in the order of the batches."""

    def __init__(self, metrics: Sequence[Metric]) -> None:
        self.metrics = metrics
        self.reset()

    def reset(self) -> None:
        """Back to nothing."""
        self.loss, self.weight, self.rows = 0.0, 0.0, 0
        self.sums: list[list[float]] = [[] for _ in self.metrics]

    def measure(self, outputs: Any, targets: Any) -> list[list[float]]:
        """The sums of every metric for one batch."""
        outputs, targets = _values(outputs), _values(targets)
        return [[float(part) for part in _parts(metric, outputs, targets)] for metric in self.metrics]

    def add(self, loss: float, weight: float, rows: int, sums: list[list[float]]) -> None:
        """Count a batch: its mean loss, over how much that is a mean, its rows, and what `measure` gave."""
        self.loss, self.weight, self.rows = self.loss + loss * weight, self.weight + weight, self.rows + rows
        self.sums = [[a + b for a, b in zip(old, new, strict=True)] if old else new for old, new in zip(self.sums, sums, strict=True)]

    def values(self, prefix: str = "") -> dict[str, float]:
        """The mean loss and the metrics by name."""
        values = {f"{prefix}loss": ratio(self.loss, self.weight)}
        for metric, sums in zip(self.metrics, self.sums, strict=True):
            values[prefix + metric.name] = float(metric.value(*sums)) if sums else math.nan
        return values

    def state(self) -> list[Any]:
        """Everything, as JSON values; text for floats, which may be NaN."""
        return [repr(self.loss), repr(self.weight), self.rows, [[repr(part) for part in sums] for sums in self.sums]]

    def load(self, state: list[Any]) -> None:
        """Take over what `state` gave."""
        loss, weight, self.rows, sums = state
        self.loss, self.weight, self.sums = float(loss), float(weight), [[float(part) for part in parts] for parts in sums]


def _values(tensor: Any) -> Any:
    return tensor.numpy() if isinstance(tensor, Tensor) else np.asarray(tensor) if isinstance(tensor, (list, float, int)) else tensor


def _parts(metric: Metric, outputs: Any, targets: Any) -> Sequence[float]:
    parts = metric.sums(outputs, targets)
    if not isinstance(parts, (tuple, list)) or (metric.value is ratio and len(parts) != 2):
        raise ConfigError(f"The metric {metric.name!r} must return a pair (sum, count) for each batch, found {parts!r}.")
    return parts


MODES = {"loss": "min", "mae": "min", "mse": "min", "error": "min", "perplexity": "min", "accuracy": "max", "r2": "max", "f1": "max"}


def direction(name: str, mode: str | None = None) -> int:
    """Whether more is better (1) or less (-1) of what is recorded under that name. Raises ConfigError if that is not known."""
    if mode is None:
        mode = MODES.get(name.removeprefix("val_"))
        if mode is None:
            raise ConfigError(f"Is more of {name!r} better, or less? Pass mode='max' or mode='min'.")
    if mode not in ("min", "max"):
        raise UnknownNameError(f"mode must be 'min' or 'max', found {mode!r}.")
    return 1 if mode == "max" else -1
