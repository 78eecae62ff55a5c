"""The log of a training run: a file of JSON lines, one object a step and one an epoch."""

import json
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

from ..errors import StoreError
from ..io.atomic import atomic_file
from .callbacks import Callback, Record
from .history import finite

if TYPE_CHECKING:
    from .trainer import Trainer


class JsonLog(Callback):
    """Writes each record as it comes, with an "event" of "step" or "epoch"; null stands for numbers that are not finite.

    A fit begins by writing what the trainer's history holds already, so after `resume` the file goes on where the checkpoint
    was taken: nothing twice, nothing missing.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._file: TextIO | None = None

    def __enter__(self) -> "JsonLog":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def on_fit_start(self, trainer: "Trainer") -> None:
        """Write the history so far and stay open."""
        events = [("step", record) for record in trainer.history.steps] + [("epoch", record) for record in trainer.history.epochs]
        events.sort(key=lambda event: event[1]["step"])  # stable: an epoch comes after its last step
        with atomic_file(self.path) as file:
            file.writelines(_line(*event).encode() for event in events)
        try:
            self._file = self.path.open("a", encoding="utf-8", newline="\n")
        except OSError as error:
            raise StoreError(f"cannot write the log '{self.path}': {error.strerror or error}") from error

    def _write(self, event: str, record: Record) -> None:
        assert self._file is not None
        self._file.write(_line(event, record))
        self._file.flush()

    def on_step_end(self, trainer: "Trainer", record: Record) -> None:
        """Write the step."""
        self._write("step", record)

    def on_epoch_end(self, trainer: "Trainer", record: Record) -> None:
        """Write the epoch."""
        self._write("epoch", record)


def _line(event: str, record: dict[str, Any]) -> str:
    return json.dumps({"event": event} | finite(record)) + "\n"
