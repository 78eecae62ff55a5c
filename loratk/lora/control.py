"""What adapters do around the steps of training beside computing: penalties, schedules of ranks, caps."""

from typing import Any

from ..autograd import Tensor


class Controller:
    """One adapter's part in a training run. Trainer calls these by itself; a loop of your own calls them in this order, each step:

    `before_step()`, the forward pass, `penalty()` (added to the loss), the backward pass, `before_update()` with the gradients
    complete, the optimiser's step, `after_update(lr)`. What it remembers is in `state_dict`; what it draws comes from the adapters' own
    generators (`LoraAdapter.rng`), so that a step that fails leaves no trace.
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

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must keep: arrays and JSON values by name."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""
