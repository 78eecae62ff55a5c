"""Losses as modules: called with predictions and targets, they give one number."""

from typing import Any

import numpy as np

from ..autograd import Tensor, ops
from ..autograd.ops.losses import check_smoothing
from ..errors import ConfigError
from .module import Module


class MSELoss(Module):
    """Mean of (x - target)^2 over all entries; the shapes must be equal."""

    def forward(self, x: Any, target: Any) -> Tensor:
        """(...), (...) -> ()."""
        return ops.mse(self.input(x), target)


class CrossEntropyLoss(Module):
    """Mean cross-entropy between softmax(logits) and integer labels, but for rows labelled `ignore_index`.

    `label_smoothing` in [0, 1) moves that share of the target from the label to all classes alike.
    """

    def __init__(self, *, ignore_index: int = -100, label_smoothing: float = 0.0) -> None:
        if isinstance(ignore_index, bool) or not isinstance(ignore_index, (int, np.integer)):
            raise ConfigError(f"ignore_index must be an integer, found {ignore_index!r}.")
        self.ignore_index, self.label_smoothing = int(ignore_index), check_smoothing(label_smoothing)

    def forward(self, logits: Any, labels: Any) -> Tensor:
        """(..., k), integers (...,) -> ()."""
        return ops.cross_entropy(self.input(logits), labels, ignore_index=self.ignore_index, label_smoothing=self.label_smoothing)

    def describe(self) -> str:
        """The options, for the repr."""
        return f"ignore_index={self.ignore_index}, label_smoothing={self.label_smoothing}"


class BCEWithLogitsLoss(Module):
    """Mean binary cross-entropy between sigmoid(logits) and targets in [0, 1]; the shapes must be equal."""

    def forward(self, logits: Any, target: Any) -> Tensor:
        """(...), (...) -> ()."""
        return ops.binary_cross_entropy(self.input(logits), target)
