"""A small run that uses everything whose state must survive: dropout, shuffling, momentum, clipping, early stopping."""

from typing import Any

import numpy as np

from loratk import nn
from loratk.autograd import ops
from loratk.nn.optim import AdamW
from loratk.train import Callback, EarlyStopping, Trainer, accuracy, spiral, split

TRAIN, HELD = split(*spiral(130, rng=0), (0.8, 0.2), seed=0)
EPOCHS, BATCH_SIZE = 3, 16  # 104 rows: 7 batches, the last with 8 rows
STEPS = 7 * EPOCHS


def network(seed: int = 1) -> nn.Sequential:
    rng = np.random.default_rng(seed)
    base = nn.Linear(2, 16, rng=rng)
    base.freeze()
    return nn.Sequential(base, nn.ReLU(), nn.Dropout(0.2, rng=seed), nn.Linear(16, 16, rng=rng), nn.ReLU(), nn.Linear(16, 3, rng=rng))


def trainer(extra: Any = (), **options: Any) -> Trainer:
    model = network()
    options = {"metrics": [accuracy], "clip_norm": 1.0, "seed": 7, "callbacks": [EarlyStopping(patience=2), *extra]} | options
    return Trainer(model, AdamW(model.trainable(), lr=0.01), ops.cross_entropy, **options)


def fit(trainer: Trainer, **options: Any) -> Any:
    return trainer.fit(TRAIN, **({"epochs": EPOCHS, "batch_size": BATCH_SIZE, "validation": HELD} | options))


def outcome(trainer: Trainer) -> dict[str, Any]:
    """Everything that must be the same bits, as comparable values."""
    without_time = [{k: v for k, v in record.items() if k != "seconds"} for record in trainer.history.steps + trainer.history.epochs]
    return {
        "model": {name: value.tobytes() for name, value in trainer.model.state_dict().items()},
        "optimizer": {name: value.tobytes() for name, value in trainer.optimizer.state_dict().items()},
        "generators": {name: str(g.bit_generator.state) for name, g in trainer.model.generators().items()},
        "history": without_time,
        "stopped": trainer.stopped,
    }


class InterruptAt(Callback):
    """Ctrl-C out of a callback, at one step (counted over the run) or epoch."""

    def __init__(self, step: int = 0, event: str = "on_step_end") -> None:
        self.at, self.event = step, event

    def _maybe(self, event: str, step: int) -> None:
        if event == self.event and step == self.at:
            self.at = -1
            raise KeyboardInterrupt

    def on_epoch_start(self, trainer: Trainer) -> None:
        self._maybe("on_epoch_start", trainer.step)

    def on_step_end(self, trainer: Trainer, record: Any) -> None:
        self._maybe("on_step_end", record["step"])

    def on_validation_end(self, trainer: Trainer, record: Any) -> None:
        self._maybe("on_validation_end", record["step"])

    def on_epoch_end(self, trainer: Trainer, record: Any) -> None:
        self._maybe("on_epoch_end", record["step"])
