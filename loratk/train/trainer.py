"""The training loop."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, DtypeError, FormatError, StateError, faults
from ..kernels.memory import release_memory
from ..nn import Module
from . import checkpoint as files
from .callbacks import EVENTS, Callback, Record
from .data import Batch, Data, Source, as_source, check_batch_size, check_count, count_rows, require_rerun
from .evaluation import Loss, evaluate
from .history import History
from .interrupt import Interrupts
from .log import JsonLog
from .metrics import Metric, Sums, Totals, as_metrics
from .model_state import fingerprint, frozen, in_mode
from .progress import ProgressLine
from .step import Stepper

if TYPE_CHECKING:
    from rich.console import Console


class Trainer:
    """Trains the parameters of a model that are not frozen.

    `loss(outputs, targets)` is a Tensor with the mean over a batch. `metrics`: functions (see `loratk.train.metrics`) or a mapping of
    names to them. `clip_norm` bounds the norm of the whole gradient. `accumulate` batches make one step. `weight(targets)` says over
    how much the loss of a batch is a mean (its rows; the labels that count, where a loss ignores some): batches of a step,
    and of an epoch, count by it. `seed` decides the order of the rows. `log` is a file of JSON lines. `checkpoint` is a file (.npz, .h5)
    written every `checkpoint_every` steps, or each 'epoch', and on Ctrl-C; `keep` of them are kept. `progress` shows a line on a terminal:
    True is standard error, or give a rich Console.
    """

    def __init__(
        self,
        model: Module,
        optimizer: Any,
        loss: Loss,
        *,
        metrics: Iterable[Sums | Metric] | Mapping[str, Sums | Metric] = (),
        clip_norm: float | None = None,
        accumulate: int = 1,
        weight: Callable[[Any], float] = count_rows,
        callbacks: Sequence[Callback] = (),
        seed: int = 0,
        log: str | Path | None = None,
        checkpoint: str | Path | None = None,
        checkpoint_every: int | str = "epoch",
        keep: int = 1,
        progress: "bool | Console" = True,
    ) -> None:
        for callback in callbacks:
            if not isinstance(callback, Callback):
                raise DtypeError(f"callbacks must be Callback objects, found {callback!r}; derive from loratk.train.Callback.")
        if clip_norm is not None and not 0 < clip_norm < math.inf:
            raise ConfigError(f"clip_norm must be a positive number or None, found {clip_norm!r}.")
        if checkpoint_every != "epoch":
            check_count("checkpoint_every ('epoch' or a number of steps)", checkpoint_every)
        if checkpoint is None and (checkpoint_every != "epoch" or keep != 1):
            raise ConfigError("checkpoint_every and keep need a checkpoint: say where it is to be written.")
        self.model, self.optimizer, self.loss = model, optimizer, loss
        self.metrics, self.callbacks = as_metrics(metrics), list(callbacks)
        self.clip_norm = None if clip_norm is None else float(clip_norm)
        self.weight, self.log, self.progress = weight, log, progress
        self.accumulate, self.seed, self.keep = (
            check_count("accumulate", accumulate),
            check_count("seed", seed, 0),
            check_count("keep", keep),
        )
        self.checkpoint = None if checkpoint is None else files.check_path(checkpoint)
        self.checkpoint_every = checkpoint_every

        self.history = History()
        self.epoch, self.step, self.epochs = 0, 0, 0
        self.stopped: str | None = None
        self.continuing = False
        self.recorded: list[str] = []
        self._step_in_epoch, self._first_epoch, self._seconds = 0, 0, 0.0
        self._totals = Totals(self.metrics)
        self._open, self._running = False, False
        self._settings: dict[str, Any] = {}
        self._fingerprint: tuple[list[str], str] | None = None
        self._stepper: Stepper | None = None
        self._controllers: list[Any] = []
        self._controlled: list[dict[str, Any]] | None = None
        self._since: float | None = None
        self._saved: tuple[int, int] | None = None
        self._interrupts = Interrupts()
        self._observers: list[Callback] = []
        self._source: Source | None = None

    # What users call

    def fit(
        self, train: Data, *, epochs: int, batch_size: int | None = None, validation: Data | None = None, shuffle: bool = True
    ) -> History:
        """Train for that many epochs and return the history.

        Data is a pair of arrays `(x, y)`, cut into batches of `batch_size` (32 if not given) in an order that is new each epoch
        unless `shuffle` is off; or an iterable of batches `(x, y)`, or a function from the epoch (0, 1, ...) to one. After `resume`, or
        after a fit that was interrupted, the same call finishes that fit. Raises AnomalyError when loss or gradient is not finite.
        """
        if self._running:
            raise StateError("This Trainer is in the middle of a fit() already; let it end, or make another Trainer.")
        check_count("epochs", epochs)
        self._source = self._make_source(train, batch_size, shuffle, "train")
        held = None if validation is None else self._make_source(validation, batch_size, False, "validation")
        check_batch_size(batch_size, train, validation)
        stepper = self._begin(epochs, self._source, held)
        self._running, before = True, self.step
        try:
            with ExitStack() as stack:
                stack.enter_context(in_mode(self.model, training=True))
                stack.enter_context(self._interrupts)
                self._observers = list(self.callbacks)
                if self.log is not None:
                    self._observers.append(stack.enter_context(JsonLog(self.log)))
                if self.progress is not False:
                    self._observers.append(stack.enter_context(ProgressLine(None if self.progress is True else self.progress)))
                self._run(self._source, held, stepper)
            self._open = False
        finally:
            self._running = False
            release_memory()
            self._open = self._open and (self.continuing or self.step > before)  # a fit that failed at once is not one to finish
        return self.history

    def evaluate(self, data: Data, batch_size: int | None = None) -> dict[str, float]:
        """The mean loss and the metrics over data, in evaluation mode and without gradients; the model's mode stays as it was."""
        check_batch_size(batch_size, data)
        source = self._make_source(data, batch_size, False, "data")
        return self._evaluate(source, Interrupts())

    def stop(self, reason: str = "stopped by a callback") -> None:
        """End the training: the running epoch is closed after the present step, with its validation. `stopped` keeps the reason."""
        self.stopped = reason

    def save(self, path: str | Path) -> None:
        """Write a checkpoint now; between steps, as in a callback, or when no fit is running."""
        self._write(files.check_path(path), keep=1)

    def resume(self, path: str | Path) -> None:
        """Take over a checkpoint. The fit it was taken from goes on, with the same bits, when `fit` is called as it was then.

        The Trainer must be made as it was; what differs is listed by a ConfigError, what does not fit the model by a FormatError,
        and nothing is changed then. Raises StoreError if the file cannot be read.
        """
        if self._running:
            raise StateError("resume() cannot be called while fit() runs.")
        path = Path(path)
        contents, meta = files.read(path)
        found = files.differences(self._config(), meta["config"])
        if found:
            raise ConfigError(faults(f"This Trainer is not made like the one that wrote '{path}':", found))
        found = list(files.misfits(self.model, self.callbacks, contents, meta))
        if found:
            raise FormatError(faults(f"The checkpoint '{path}' does not fit (nothing was loaded):", found))
        self.optimizer.load_state_dict(files.section(contents, "optimizer/"))
        files.restore(self.model, self.callbacks, contents, meta)
        self._controllers, self._controlled = [], files.controlled(contents, meta)
        state = meta["trainer"]
        self.epoch, self.step = state["epoch"], state["step"]
        self._step_in_epoch, self._first_epoch = state["step_in_epoch"], state["first_epoch"]
        self.stopped, self._seconds, self._open, self._settings = (state[key] for key in ("stopped", "seconds", "open", "settings"))
        self._totals.load(state["totals"])
        self.history, self._stepper = History.from_json(meta["history"]), None
        self._saved = (self.step, self.epoch) if self.checkpoint is not None and path.resolve() == self.checkpoint.resolve() else None

    def steps_planned(self) -> tuple[int, int | None]:
        """Of the steps of this fit, how many are done, and how many there are in all (None if that is not known yet)."""
        assert self._source is not None
        done = self.step - next((record["step"] for record in self.history.epochs if record["epoch"] == self._first_epoch), 0)
        if self._source.length is not None:
            each: int | None = -(-self._source.length // self.accumulate)
        else:
            ends = [0, *(record["step"] for record in self.history.epochs)]
            each = ends[-1] - ends[-2] if len(ends) > 1 else None
        if each is None:
            return done, None
        return done, done - self._step_in_epoch + each * (self.epochs - self.epoch)

    # How it works

    def _make_source(self, data: Data, batch_size: int | None, shuffle: bool, name: str) -> Source:
        return as_source(data, batch_size=batch_size, shuffle=shuffle, seed=self.seed, name=name)

    def _begin(self, epochs: int, source: Source, held: Source | None) -> Stepper:
        if self._stepper is not None and self._stepper.torn:
            raise StateError("An earlier fit() was cut off in the middle of an update; resume from a checkpoint, or make a new Trainer.")
        settings = source.settings | ({} if held is None else held.settings)
        self.continuing = self._open
        if self.continuing:
            found = files.differences(settings, self._settings)
            if found:
                title = "This fit() is not like the one that it would finish (make a new Trainer to start afresh):"
                raise ConfigError(faults(title, found))
        else:
            self._first_epoch, self.stopped, self._settings = self.epoch, None, settings
        self.epochs = self._first_epoch + epochs
        require_rerun(source, self.epochs - self.epoch, "train")
        if held is not None:
            require_rerun(held, self.epochs - self.epoch, "validation")
        self._fingerprint = None
        self._stepper = Stepper(
            self.model, self.optimizer, self.loss, clip_norm=self.clip_norm, weight=self.weight, interrupts=self._interrupts,
            controllers=self._controllers_now(),
        )  # fmt: skip
        names = ["loss", *(metric.name for metric in self.metrics)]
        self.recorded = names + ([f"val_{name}" for name in names] if held is not None else [])
        self._open = True
        return self._stepper

    def _controllers_now(self) -> list[Any]:
        """The model's controllers: those of the fit that goes on, with the state of a checkpoint it goes on from, else new ones."""
        if not self.continuing or not self._controllers:
            self._controllers = self.model.controllers(self.steps_planned()[1])
        if not self.continuing:
            self._controlled = None  # the checkpoint's fit had ended: this is another one
        if self._controlled is not None:
            kinds = [state["kind"] for state in self._controlled]
            if kinds != (mine := [type(controller).__name__ for controller in self._controllers]):
                raise ConfigError(
                    f"The checkpoint was written with the controllers {kinds}, this model has {mine}; adapt it as it was then."
                )
            for controller, state in zip(self._controllers, self._controlled, strict=True):
                controller.load_state_dict({name: value for name, value in state.items() if name != "kind"})
            self._controlled = None
        return self._controllers

    def _run(self, source: Source, held: Source | None, stepper: Stepper) -> None:
        self._since = time.perf_counter()
        try:
            self._tell("on_fit_start")
            self._interrupts.check()
            while self.epoch < self.epochs and not (self.stopped and not self._step_in_epoch):
                self._run_epoch(source, held, stepper)
            if self.checkpoint is not None:
                self._write(self.checkpoint, keep=self.keep)
            self._tell("on_fit_end")
            self._interrupts.check()
        except KeyboardInterrupt:
            if self.checkpoint is not None and not stepper.torn:
                self._write(self.checkpoint, keep=self.keep)
            raise
        finally:
            self._seconds, self._since = self._elapsed(), None

    def _run_epoch(self, source: Source, held: Source | None, stepper: Stepper) -> None:
        if not self._step_in_epoch:
            self._tell("on_epoch_start")
        stepper.refresh()
        cut_short = self.stopped and self._step_in_epoch  # by stop(), before the checkpoint from which this goes on
        batches = iter(()) if cut_short else source.batches(self.epoch, self._step_in_epoch * self.accumulate)
        while group := self._next(batches):
            self._run_step(group, stepper)
            if self.stopped:
                break
        if not self._step_in_epoch:
            raise StateError(f"train gave no batch in epoch {self.epoch + 1}: it is empty, or can be iterated only once and is used up.")
        record: Record = {"epoch": self.epoch + 1, "step": self.step, "rows": self._totals.rows, **self._totals.values()}
        if held is not None:
            values = {f"val_{name}": value for name, value in self._evaluate(held, self._interrupts).items()}
            self._tell("on_validation_end", {"epoch": self.epoch + 1, "step": self.step, **values})
            record |= values
        record["seconds"] = self._elapsed()
        stepper.torn = True
        self.history.epochs.append(record)
        self.epoch, self._step_in_epoch = self.epoch + 1, 0
        self._totals.reset()
        stepper.torn = False
        self._tell("on_epoch_end", record)
        if self.checkpoint is not None and self.checkpoint_every == "epoch":
            self._write(self.checkpoint, keep=self.keep)
        self._interrupts.check()

    def _next(self, batches: Iterator[Batch]) -> list[Batch]:
        with self._interrupts.abortable():
            return list(islice(batches, self.accumulate))

    def _run_step(self, group: Sequence[Batch], stepper: Stepper) -> None:
        update = stepper.run(group, self._totals, f"in epoch {self.epoch + 1}, step {self.step + 1}")
        self.step, self._step_in_epoch = self.step + 1, self._step_in_epoch + 1
        record: Record = {"epoch": self.epoch + 1, "step": self.step, "rows": update.rows, "loss": update.loss, "lr": update.lr}
        if update.grad_norm is not None:
            record["grad_norm"] = update.grad_norm
        if update.penalty is not None:
            record["penalty"] = update.penalty
        record |= {name: value for name, value in update.controlled.items() if name not in record}
        record["seconds"] = self._elapsed()
        self.history.steps.append(record)
        stepper.torn = False
        self._tell("on_step_end", record)
        if self.checkpoint is not None and self.checkpoint_every != "epoch" and self.step % int(self.checkpoint_every) == 0:
            self._write(self.checkpoint, keep=self.keep)
        self._interrupts.check()

    def _evaluate(self, source: Source, interrupts: Interrupts) -> dict[str, float]:
        return evaluate(self.model, self.loss, source, metrics=self.metrics, weight=self.weight, interrupts=interrupts)

    def _tell(self, event: str, *arguments: Any) -> None:
        """Call all observers; Ctrl-C out of one of them waits until all have seen the event."""
        assert event in EVENTS
        for observer in self._observers:
            try:
                with self._interrupts.abortable():
                    getattr(observer, event)(self, *arguments)
            except KeyboardInterrupt:
                self._interrupts.asked = True

    def _elapsed(self) -> float:
        return self._seconds + (0.0 if self._since is None else time.perf_counter() - self._since)

    def _config(self) -> dict[str, Any]:
        return {
            "optimizer": type(self.optimizer).__name__,
            "metrics": [metric.name for metric in self.metrics],
            "clip_norm": self.clip_norm,
            "accumulate": self.accumulate,
            "seed": self.seed,
        }

    def _write(self, path: Path, *, keep: int) -> None:
        if path == self.checkpoint and self._saved == (self.step, self.epoch):
            return
        names = [name for name, _ in frozen(self.model)]
        if self._fingerprint is None or self._fingerprint[0] != names:
            self._fingerprint = names, fingerprint(self.model)
        state = {
            "epoch": self.epoch, "step": self.step, "step_in_epoch": self._step_in_epoch, "first_epoch": self._first_epoch,
            "stopped": self.stopped, "seconds": self._elapsed(), "open": self._open, "settings": self._settings,
            "totals": self._totals.state(),
        }  # fmt: skip
        meta = {"trainer": state, "config": self._config(), "history": self.history.to_json(), "frozen": self._fingerprint[1]}
        controllers = files.controller_states(self._controllers) if self._controlled is None else self._controlled
        files.write(
            path, model=self.model, optimizer=self.optimizer, callbacks=self.callbacks, controllers=controllers, meta=meta, keep=keep
        )  # fmt: skip
        if path == self.checkpoint:
            self._saved = (self.step, self.epoch)
