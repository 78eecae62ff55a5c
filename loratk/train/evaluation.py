"""Loss and metrics over data, without training."""

from collections.abc import Callable, Sequence
from typing import Any

from ..autograd import Tensor, no_grad
from ..errors import DtypeError, ShapeError, StateError
from ..nn import Module
from .data import Source, count_rows
from .interrupt import Interrupts
from .metrics import Metric, Totals
from .model_state import in_mode

Loss = Callable[[Any, Any], Tensor]


def evaluate(
    model: Module, loss: Loss, source: Source, *, metrics: Sequence[Metric], weight: Callable[[Any], float], interrupts: Interrupts
) -> dict[str, float]:
    """The mean loss and the metrics over all batches, in evaluation mode; the model's mode stays as it was."""
    totals = Totals(metrics)
    with in_mode(model, training=False), no_grad(), interrupts.abortable():
        for x, y in source.batches(0):
            interrupts.check()
            value, outputs = evaluate_batch(model, loss, x, y)
            totals.add(value.item(), weigh(weight, y), count_rows(y), totals.measure(outputs, y))
    if not totals.rows:
        raise StateError("The data to evaluate gave no batch: it is empty, or can be iterated only once and is used up.")
    return totals.values()


def weigh(weight: Callable[[Any], float], targets: Any) -> float:
    """Over how much the loss of a batch is a mean. Raises ShapeError unless that is positive."""
    value = float(weight(targets))
    if not 0 < value < float("inf"):
        raise ShapeError(f"A batch must weigh more than 0 (by default: its rows), found weight {value} for a {type(targets).__name__}.")
    return value


def evaluate_batch(model: Module, loss: Loss, x: Any, y: Any) -> tuple[Tensor, Any]:
    """The loss of a batch, and the outputs. Raises DtypeError unless the loss is a tensor with a single number."""
    outputs = model(x)
    value = loss(outputs, y)
    if not isinstance(value, Tensor) or value.size != 1:
        found = f"a tensor of shape {value.shape}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
        raise DtypeError(f"The loss must be a Tensor with a single number, such as cross_entropy(outputs, targets) gives; found {found}.")
    return value, outputs
