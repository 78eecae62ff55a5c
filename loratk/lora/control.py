"""What adapters do around the steps of training beside computing: penalties, schedules of ranks, caps."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..autograd import Tensor
from ..errors import StateError
from ..nn import Parameter


class Controller:
    """One adapter's part in a training run. Trainer calls these by itself; a loop of your own calls them in this order, each step:

    `before_step()`, the forward pass, `penalty()` (added to the loss), the backward pass, `before_update()` with the gradients
    complete, the optimiser's step, `after_update(lr)`, and for what `moved()` names the optimiser's `restart`. `controlled_step` is
    such a loop's body. What a controller remembers is in `state_dict`; what it draws comes from the adapters' own generators
    (`LoraAdapter.rng`), so that a step that fails leaves no trace.
    """

    def before_step(self) -> None:
        """Before the forward pass."""

    def penalty(self) -> Tensor | None:
        """A number to add to the loss of the step, or None."""
        return None

    def before_update(self) -> None:
        """After the backward pass, before the optimiser: the parameters' gradients are those of the step."""

    def after_update(self, lr: float) -> None:
        """After the optimiser, which had that learning rate."""

    def moved(self) -> Sequence[Parameter]:
        """The parameters that the last `after_update` made anew: what an optimiser remembers of their gradients holds no longer."""
        return ()

    def record(self) -> Mapping[str, float]:
        """Numbers of the last step for the record of the run, by name."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must keep: arrays and JSON values by name."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""


def controlled_step(controllers: Sequence[Controller], optimizer: Any, loss: Any) -> float:
    """One step of a loop of your own: `loss()` makes the loss of a batch, a Tensor. Returns its value, without the penalties.

    Gradients that parameters have already count with the step's; none are left after it.
    """
    for controller in controllers:
        controller.before_step()
    value = loss()
    value.backward()
    for controller in controllers:
        if (penalty := controller.penalty()) is not None:
            penalty.backward()
    update(controllers, optimizer)
    optimizer.zero_grad()
    return float(value.item())


def update(controllers: Sequence[Controller], optimizer: Any) -> None:
    """The optimiser's step between what the controllers do before and after it."""
    lr = float(optimizer.lr)
    for controller in controllers:
        controller.before_update()
    optimizer.step()
    for controller in controllers:
        controller.after_update(lr)
        if moved := controller.moved():
            optimizer.restart(moved)


def records(controllers: Sequence[Controller]) -> dict[str, float]:
    """The numbers of all controllers; a name that several have is followed by its place, as in `rank.1`, from the second on."""
    found: dict[str, float] = {}
    for controller in controllers:
        for name, value in controller.record().items():
            place = sum(key.partition(".")[0] == name for key in found)
            found[f"{name}.{place}" if place else name] = value
    return found


def put(parameter: Parameter, values: np.ndarray) -> None:
    """Write values into a parameter's own array, so that an optimiser that laid it beside others need not gather them again."""
    if isinstance(parameter.data, np.ndarray) and not parameter.frozen:
        parameter.data[...] = values
    else:
        parameter.assign(np.asarray(values, parameter.dtype))


def gradient(parameter: Parameter) -> np.ndarray:
    """A parameter's gradient, zeros where it has none."""
    if parameter.grad is None:
        return np.zeros(parameter.shape, parameter.dtype)
    return np.asarray(parameter.backend.numpy(parameter.grad))


def check_shapes(kept: Mapping[str, tuple[Any, ...]], now: Mapping[str, tuple[Any, ...]]) -> None:
    """Raise StateError if the parts of an adapter are no longer those that a controller began with."""
    if kept != now:
        changed = sorted(name for name in kept.keys() | now.keys() if kept.get(name) != now.get(name))
        raise StateError(
            f"The adapter was changed since this run began (at {changed[0]!r}): it was resized, compacted or taken out. Make a new "
            "optimiser, and a new Trainer or new controllers, after that."
        )
