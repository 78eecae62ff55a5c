"""Code of the user's that runs at the events of a training run, and early stopping."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import ConfigError, FormatError, UnknownNameError, choices
from .data import check_count
from .metrics import direction
from .model_state import moving

if TYPE_CHECKING:
    from .trainer import Trainer

EVENTS = ("on_fit_start", "on_epoch_start", "on_step_end", "on_validation_end", "on_epoch_end", "on_fit_end")
Record = dict[str, float]


class Callback:
    """Methods that a Trainer calls; override those you need. `record` holds what is known of the step or epoch by name.

    To end the training, call `trainer.stop()`. A callback with a state of its own returns it from `state_dict` (arrays and
    JSON values by name) so that checkpoints keep it. KeyboardInterrupt raised in a callback is taken for Ctrl-C: the event
    runs to its end first.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        unknown = [name for name in vars(cls) if name.startswith("on_") and name not in EVENTS]
        if unknown:
            raise ConfigError(f"{cls.__name__} defines {choices(unknown)}, which no Trainer calls. The events: {', '.join(EVENTS)}.")

    def on_fit_start(self, trainer: Trainer) -> None:
        """Before the first epoch. `trainer.continuing` tells whether an earlier fit is being finished."""

    def on_epoch_start(self, trainer: Trainer) -> None:
        """Before the first step of an epoch."""

    def on_step_end(self, trainer: Trainer, record: Record) -> None:
        """After each optimiser step."""

    def on_validation_end(self, trainer: Trainer, record: Record) -> None:
        """After the validation data was evaluated; `record` holds the `val_` values."""

    def on_epoch_end(self, trainer: Trainer, record: Record) -> None:
        """After each epoch and its validation."""

    def on_fit_end(self, trainer: Trainer) -> None:
        """After the last epoch; not when the training was interrupted or failed."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must keep."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        if state:
            raise FormatError(f"{type(self).__name__} keeps no state, but the checkpoint holds {choices(state)} for it.")


class EarlyStopping(Callback):
    """End the training once `monitor` has not improved by more than `min_delta` for `patience` epochs.

    `mode` ('min' or 'max') is known for losses and the metrics of loratk. With `restore_best`, the model ends up with the trainable
    parameters and buffers of its best epoch. A value that is not finite is no improvement.
    """

    def __init__(
        self, monitor: str = "val_loss", *, patience: int = 3, min_delta: float = 0.0, mode: str | None = None, restore_best: bool = True
    ) -> None:
        if not min_delta >= 0:
            raise ConfigError(f"min_delta must be at least 0, found {min_delta!r}.")
        self.monitor, self.patience, self.min_delta = monitor, check_count("patience", patience), min_delta
        self.restore_best, self.sign = restore_best, direction(monitor, mode)
        self._reset()

    def _reset(self) -> None:
        self.best, self.best_epoch, self.waited = None, 0, 0
        self._weights: dict[str, np.ndarray] = {}

    best: float | None

    def on_fit_start(self, trainer: Trainer) -> None:
        """Check that `monitor` will be there; forget what an earlier, finished fit left."""
        if self.monitor not in trainer.recorded:
            hint = "; pass validation data to fit()" if self.monitor.startswith("val_") else ""
            raise UnknownNameError(f"EarlyStopping watches {self.monitor!r}, but an epoch records {choices(trainer.recorded)}{hint}.")
        if not trainer.continuing:
            self._reset()

    def on_epoch_end(self, trainer: Trainer, record: Record) -> None:
        """Compare with the best epoch so far."""
        value = record[self.monitor]
        if np.isfinite(value) and (self.best is None or self.sign * (value - self.best) > self.min_delta):
            self.best, self.best_epoch, self.waited = float(value), int(record["epoch"]), 0
            if self.restore_best:
                self._weights = {name: np.array(array.numpy()) for name, array in moving(trainer.model).items()}
            return
        self.waited += 1
        if self.waited >= self.patience:
            trainer.stop(f"{self.monitor} has not improved since epoch {self.best_epoch}")

    def on_fit_end(self, trainer: Trainer) -> None:
        """Restore the best epoch."""
        arrays = dict(trainer.model.named_parameters()) | dict(trainer.model.named_buffers())
        for name, values in self._weights.items():
            arrays[name].assign(values)

    def state_dict(self) -> dict[str, Any]:
        """The best epoch and how long ago it was."""
        return {"best": self.best, "best_epoch": self.best_epoch, "waited": self.waited} | {
            f"weights/{name}": values for name, values in self._weights.items()
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self.best, self.best_epoch, self.waited = state["best"], state["best_epoch"], state["waited"]
        self._weights = {name.removeprefix("weights/"): v for name, v in state.items() if name.startswith("weights/")}
