"""What happened during training: a record a step and a record an epoch."""

import json
import math
from pathlib import Path
from typing import Any

from ..errors import FormatError, StateError, UnknownNameError, choices
from .metrics import direction

Record = dict[str, Any]


class History:
    """`steps` and `epochs` are lists of records (dicts of numbers by name); `history["val_loss"]` is one value an epoch.

    A step records `epoch` and `step` (both counted from 1, the step over the whole run), `rows` (its batch), `loss`, `lr`, `seconds` (of
    training so far) and, with clipping, `grad_norm` before it. An epoch records `epoch`, `step`, `rows`, `seconds`, the mean `loss`
    and metrics over its training batches as they were met, and the same over the validation data with the prefix `val_`.
    """

    def __init__(self, steps: list[Record] | None = None, epochs: list[Record] | None = None) -> None:
        self.steps, self.epochs = steps or [], epochs or []

    def names(self) -> list[str]:
        """Everything that an epoch recorded."""
        return list(dict.fromkeys(name for record in self.epochs for name in record))

    def __getitem__(self, name: str) -> list[float]:
        if name not in self.names():
            raise UnknownNameError(f"The history has no {name!r}; its epochs record {choices(self.names())}.")
        return [record.get(name, math.nan) for record in self.epochs]

    def __len__(self) -> int:
        return len(self.epochs)

    def __repr__(self) -> str:
        last = ", ".join(f"{name}={value:.6g}" for name, value in self.epochs[-1].items()) if self.epochs else ""
        return f"History({len(self.epochs)} epochs, {len(self.steps)} steps{'; last: ' if last else ''}{last})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, History) and self.to_json() == other.to_json()

    __hash__ = None  # type: ignore[assignment]

    def best(self, monitor: str = "val_loss", *, mode: str | None = None) -> Record:
        """The record of the epoch that was best by `monitor`, the first of equals. `mode` as for EarlyStopping."""
        values, sign = self[monitor], direction(monitor, mode)
        known = [(value, record) for value, record in zip(values, self.epochs, strict=True) if not math.isnan(value)]
        if not known:
            raise StateError(f"No epoch has a value of {monitor!r}: all are NaN.")
        return max(known, key=lambda pair: sign * pair[0])[1]

    def to_json(self) -> str:
        """The history as JSON text; numbers that are not finite become null."""
        return json.dumps({"steps": [finite(record) for record in self.steps], "epochs": [finite(record) for record in self.epochs]})

    @classmethod
    def from_json(cls, text: str) -> "History":
        """The history that `to_json` wrote; null becomes NaN. Raises FormatError."""
        try:
            found = json.loads(text)
            return cls(*([_revived(record) for record in found[key]] for key in ("steps", "epochs")))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise FormatError(f"This is not the JSON text of a History: {error!r}.") from error

    def plot(self, path: str | Path) -> None:
        """Draw loss and metrics into a picture (PNG, SVG or PDF by the suffix). Needs matplotlib, but no display."""
        from .plot import plot_history

        plot_history(self, path)


def _revived(record: Record) -> Record:
    return {name: math.nan if value is None else value for name, value in record.items()}


def finite(record: Record) -> Record:
    """The record with None in place of NaN and infinities, which JSON does not have."""
    return {name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in record.items()}
