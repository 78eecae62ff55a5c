"""A line on the terminal that shows how the training goes."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING, Any

from .callbacks import Callback, Record

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

    from .trainer import Trainer

OTHERS = 62  # columns taken by everything but the validated values, with a bar of at least 8
INTERVAL = 0.1  # seconds between two updates: a step may take 50 microseconds, and a terminal is slow


class ProgressLine(Callback):
    """Epoch, a bar, loss, rate and time left, drawn with rich. Nothing at all unless the console is a terminal."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._next, self._rows, self._held = 0.0, 0, ""

    def __enter__(self) -> ProgressLine:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def on_fit_start(self, trainer: Trainer) -> None:
        """Start drawing."""
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        console = self.console or Console(stderr=True)
        if not console.is_terminal:
            return
        self._progress = Progress(
            TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}"),
            BarColumn(bar_width=None),
            TextColumn("loss {task.fields[loss]}{task.fields[held]}"),
            TextColumn("{task.fields[rate]}", style="progress.download"),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=console,
            expand=True,
            speed_estimate_period=10,
        )
        done, total = trainer.steps_planned()
        fields: dict[str, Any] = {
            "epoch": min(trainer.epoch + 1, trainer.epochs),
            "epochs": trainer.epochs,
            "loss": "-",
            "held": "",
            "rate": "",
        }
        self._task = self._progress.add_task("", total=total, completed=done, **fields)
        self._next, self._rows, self._since = 0.0, 0, time.monotonic()
        self._progress.start()

    def _show(self, trainer: Trainer, epoch: int, loss: float) -> None:
        assert self._progress is not None
        assert self._task is not None
        now = time.monotonic()
        done, total = trainer.steps_planned()
        rate = f"{self._rows / max(now - self._since, 1e-9):,.0f} rows/s"
        self._progress.update(self._task, completed=done, total=total, epoch=epoch, loss=f"{loss:#.3g}", rate=rate, held=self._held)
        self._next = now + INTERVAL

    def on_step_end(self, trainer: Trainer, record: Record) -> None:
        """Show the loss of the step, if the last update is long enough ago."""
        self._rows += int(record["rows"])
        if self._progress is not None and time.monotonic() >= self._next:
            self._show(trainer, int(record["epoch"]), record["loss"])

    def on_epoch_end(self, trainer: Trainer, record: Record) -> None:
        """Show the mean loss of the epoch and what was validated."""
        shown = [name for name in record if name.startswith("val_")] or [name for name in trainer.recorded if name != "loss"]
        if self._progress is not None:
            parts = [f"  {name} {record[name]:#.3g}" for name in shown]
            room = self._progress.console.width - OTHERS
            self._held = "".join(part for i, part in enumerate(parts) if sum(map(len, parts[: i + 1])) <= room)
            self._show(trainer, int(record["epoch"]), record["loss"])
