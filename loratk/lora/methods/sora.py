"""SoRA."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ...errors import choices
from ..inits.base import Start
from ..inits.chance import Kaiming
from ..settings import is_number
from .diagonal import Diagonal

if TYPE_CHECKING:
    from ..control import Controller
    from ..model import LoraModel

SCHEDULES = ("constant", "linear", "log_linear", "exp_linear")


class Sora(Diagonal):
    """W + scaling A diag(g) B with gates g (r,), which proximal steps bring to 0: sparse LoRA. Ding et al. 2023, eq. 4.

    `lora_A` (d, r) is random, `lora_B` (r, k) zero, `gate` starts from N(0, 1) as in the authors' code. After each step of the optimiser
    every gate goes by a threshold towards 0 and stops there: g = sign(g) max(|g| - threshold, 0) (eq. 7). `LoraModel.compact` cuts
    what has gate 0.

    lambda: the threshold is the step's learning rate times it (eq. 7), or, with times_lr False, it alone, as in the authors' code.
    schedule, max_lambda: how it rises to max_lambda over the run, as the authors' schedules of runs do: "linear"; "log_linear", the
    logarithm of what rises linearly; "exp_linear", by equal factors. "constant" has no max_lambda.
    """

    name, diagonal, scales = "sora", "gate", ("lora_A", "lora_B")
    options: ClassVar[Mapping[str, Any]] = {"lambda": 0.1, "times_lr": True, "schedule": "constant", "max_lambda": None}

    def option_faults(self, options: Mapping[str, Any]) -> Iterator[str]:
        """Unknown names and values out of range."""
        yield from super().option_faults(options)
        values = {**self.options, **options}
        low, high, schedule = values["lambda"], values["max_lambda"], values["schedule"]
        fine = is_number(low) and 0 <= low < float("inf")
        if not fine:
            yield f"lambda of the method 'sora' must be a finite number of at least 0, found {low!r}"
        if not isinstance(values["times_lr"], bool):
            yield f"times_lr of the method 'sora' must be True or False, found {values['times_lr']!r}"
        if schedule not in SCHEDULES:
            yield f"schedule of the method 'sora' must be one of {choices(SCHEDULES)}, found {schedule!r}"
        elif schedule == "constant" and high is not None:
            yield f"max_lambda of the method 'sora' goes with a schedule that rises, and schedule is 'constant', found {high!r}"
        elif schedule != "constant" and not (is_number(high) and fine and low <= high < float("inf")):
            yield f"max_lambda of the method 'sora' must be a finite number of at least lambda with this schedule, found {high!r}"
        elif schedule == "exp_linear" and fine and not low:
            yield "lambda of the method 'sora' must be above 0 to rise by equal factors ('exp_linear')"

    def initial(self, weight: np.ndarray, rank: int, rng: np.random.Generator, options: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """lora_A (d, r) as LoRA's, gate (r,) from N(0, 1), lora_B (r, k) zero."""
        started = Kaiming().start(Start(weight, rank, 1.0, rng))
        gate = rng.standard_normal(rank).astype(weight.dtype)
        return {"lora_A": started.lora_A, "gate": gate, "lora_B": started.lora_B}

    def controller(self, model: "LoraModel", adapter: str, steps: int | None) -> "Controller | None":
        """The proximal steps."""
        from ..proximal import Proximal

        return Proximal(model, adapter, self, steps)
