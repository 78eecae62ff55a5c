"""Training: the loop, metrics, callbacks, early stopping, checkpoints, history and toy data."""

from .callbacks import Callback, EarlyStopping
from .data import batches, split
from .history import History
from .metrics import Metric, accuracy, mae, r2
from .multitask import MixedBatches, MultiTask, TaskRows, TaskTargets
from .toy import sine, spiral
from .trainer import Trainer

__all__ = [
    "Callback", "EarlyStopping", "History", "Metric", "MixedBatches", "MultiTask", "TaskRows", "TaskTargets", "Trainer", "accuracy",
    "batches", "mae", "r2", "sine", "spiral", "split",
]  # fmt: skip
