"""SoRA around the steps of training: the proximal step of its gates."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import ConfigError
from .control import Controller, check_shapes, put
from .parts import trained_by

if TYPE_CHECKING:
    from .methods import Method
    from .model import LoraModel


class Proximal(Controller):
    """Soft thresholds for the gates of an adapter: Ding et al. 2023, eq. 7. Layers may have options of their own.

    Raises ConfigError for a lambda that rises over a run of which nobody knows how long it is.
    """

    def __init__(self, model: "LoraModel", adapter: str, method: "Method", steps: int | None) -> None:
        self._find = lambda: trained_by(model, adapter, method)
        self.parts, self.total, self.step = self._find(), steps, 0
        self._shapes = self._shapes_now()
        self._options = {name: {**method.options, **part.settings.options} for name, part in self.parts.items()}
        if steps is None and any(options["schedule"] != "constant" for options in self._options.values()):
            raise ConfigError(
                f"The lambda of the adapter {adapter!r} rises over the run, and nobody knows how many steps that has; use the schedule "
                "'constant', or data whose length is known."
            )

    def before_step(self) -> None:
        """Raise StateError if the adapter was resized."""
        check_shapes(self._shapes, self._shapes_now())

    def after_update(self, lr: float) -> None:
        """Bring every gate nearer to 0, or to it."""
        done = min(1.0, self.step / (self.total - 1)) if self.total is not None and self.total > 1 else 1.0
        self.step += 1
        for name, part in self.parts.items():
            options = self._options[name]
            threshold = strength(options, done) * (lr if options["times_lr"] else 1.0)
            gate = vars(part)["gate"]
            values = gate.numpy()
            put(gate, np.sign(values) * np.maximum(np.abs(values) - values.dtype.type(threshold), 0) + values.dtype.type(0))  # no -0

    def record(self) -> Mapping[str, float]:
        """`ranks`: how many gates of all layers are open."""
        return {"ranks": sum(int(np.count_nonzero(vars(part)["gate"].numpy())) for part in self.parts.values())}

    def state_dict(self) -> dict[str, Any]:
        """The step."""
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.step = state["step"]

    def _shapes_now(self) -> dict[str, tuple[Any, ...]]:
        return {name: (part.d, part.rank, part.k) for name, part in self._find().items()}


def strength(options: Mapping[str, Any], done: float) -> float:
    """lambda where a share of the run, 0 at its first step and 1 at its last, is done."""
    low, high = options["lambda"], options["max_lambda"]
    if options["schedule"] == "linear":
        return float(low + done * (high - low))
    if options["schedule"] == "log_linear":
        return float(high + np.log1p((1 - done) * np.expm1(low - high)))
    if options["schedule"] == "exp_linear":
        return float(low * (high / low) ** done)
    return float(low)
