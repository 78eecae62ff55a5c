"""One optimiser step over one or several batches, all of it or nothing."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import AnomalyError, StateError
from ..lora.control import records, update
from ..nn import Module, Parameter
from ..nn.clip import clip_grad_norm
from .data import Batch, count_rows
from .evaluation import Loss, evaluate_batch, weigh
from .interrupt import Interrupts
from .metrics import Totals
from .model_state import Draft


@dataclass(frozen=True)
class Update:
    """What a step did: the mean loss over its batches, their rows, the learning rate, the gradient's norm before clipping (or None).

    `penalty`: what the model's controllers added to the loss, None where they add nothing; `controlled`: what they tell of the step.
    """

    loss: float
    rows: int
    lr: float
    grad_norm: float | None
    penalty: float | None
    controlled: Mapping[str, float] = field(default_factory=dict)


class Stepper:
    """Forward and backward over the batches of a step, then the update.

    The gradient is that of the mean over all the batches together: each batch's mean loss counts by its share of `weight`,
    so that k equal batches, or unequal ones, give what one big batch would, to rounding. `torn` is set from the update until
    the caller has counted the step and unsets it: cut in between, the run cannot go on.
    """

    torn = False

    def __init__(
        self,
        model: Module,
        optimizer: Any,
        loss: Loss,
        *,
        clip_norm: float | None,
        weight: Callable[[Any], float],
        interrupts: Interrupts,
        controllers: Sequence[Any] = (),
    ) -> None:
        self.controllers = controllers
        self.model, self.optimizer, self.loss, self.weight = model, optimizer, loss, weight
        self.clip_norm, self.interrupts = clip_norm, interrupts
        self.refresh()

    def refresh(self) -> None:
        """Look again at which parameters train and which generators there are. Raises StateError if nothing trains."""
        self.parameters: list[Parameter] = self.model.trainable()
        self.draft = Draft(self.model)
        if not self.parameters:
            raise StateError(
                f"Nothing of this {type(self.model).__name__} trains: all its parameters are frozen. Call unfreeze() on a part of it."
            )

    def run(self, group: Sequence[Batch], totals: Totals, where: str) -> Update:
        """One step, counted in `totals`. If it raises, nothing has changed. `where` is for messages."""
        weights = [weigh(self.weight, y) for _, y in group]
        shares = [weight / sum(weights) for weight in weights]
        self.draft.begin()
        self._forget_gradients()
        try:
            with self.interrupts.abortable():
                for controller in self.controllers:
                    controller.before_step()
                done = [self._batch(x, y, share, totals, where) for (x, y), share in zip(group, shares, strict=True)]
                penalty = self._penalty(where)
                norm = self._clip(where)
            lr = float(self.optimizer.lr)
            self.torn = True
            update(self.controllers, self.optimizer)
            for (_, y), weight, (loss, sums) in zip(group, weights, done, strict=True):
                totals.add(loss, weight, count_rows(y), sums)
        except BaseException:
            self.draft.discard()
            raise
        finally:
            self._forget_gradients()
        mean = sum(share * loss for share, (loss, _) in zip(shares, done, strict=True))
        return Update(mean, sum(count_rows(y) for _, y in group), lr, norm, penalty, records(self.controllers))

    def _batch(self, x: Any, y: Any, share: float, totals: Totals, where: str) -> tuple[float, list[list[float]]]:
        loss, outputs = evaluate_batch(self.model, self.loss, x, y)
        number = loss.item()
        if not np.isfinite(number):
            raise AnomalyError(f"The loss is {number} {where}. {ADVICE}")
        loss.backward(None if share == 1 else np.full(loss.shape, share, loss.dtype))
        return number, totals.measure(outputs, y)

    def _penalty(self, where: str) -> float | None:
        """Add the gradients of the controllers' penalties; their sum, None where there are none."""
        penalties = [penalty for controller in self.controllers if (penalty := controller.penalty()) is not None]
        numbers = []
        for penalty in penalties:
            numbers.append(penalty.item())
            if not np.isfinite(numbers[-1]):
                raise AnomalyError(f"A penalty of the adapters is {numbers[-1]} {where}. {ADVICE}")
            penalty.backward()
        return math.fsum(numbers) if numbers else None

    def _clip(self, where: str) -> float | None:
        """Bound the gradient, or only see to it that it is finite: the norm it had, None if there is no bound."""
        try:
            norm = clip_grad_norm(self.parameters, math.inf if self.clip_norm is None else self.clip_norm)
        except AnomalyError as error:
            raise AnomalyError(f"The loss is finite, but its gradient is not, {where}. {ADVICE}") from error
        return None if self.clip_norm is None else norm

    def _forget_gradients(self) -> None:
        self.optimizer.zero_grad()
        for parameter in self.parameters:
            parameter.grad = None


ADVICE = (
    "Nothing was trained on it. Look at the data of that step for NaN or huge values; if they are sound, lower the learning rate or set "
    "clip_norm; `with loratk.autograd.detect_anomaly():` around fit() names the op where it began."
)
