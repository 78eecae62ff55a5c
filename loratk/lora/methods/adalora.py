"""AdaLoRA."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ..settings import is_integer, is_number
from .diagonal import Diagonal

if TYPE_CHECKING:
    from ..control import Controller
    from ..model import LoraModel

SPREAD = 0.02
"""The standard deviation of the first values, as in the authors' code and PEFT."""


class Adalora(Diagonal):
    """W + scaling P diag(lambda) Q, its ranks shared out among the layers while it trains. Zhang et al. 2023, eq. 3.

    P is `lora_A` (d, r), Q is `lora_B` (r, k), both random; lambda is `lora_E` (r,), 0 at first. The config's rank is the one to begin
    with. See `loratk.lora.budget` for what is done around the steps.

    target_rank: the mean rank of the layers at the end; None for two thirds of the mean at first (section 4.1: b(0) = 1.5 b(T)).
    tinit, tfinal: for how many steps at first nothing is cut, and at last what is left trains alone; below 1 the share of all steps.
    deltaT: steps from one cut to the next. total_steps: how many there will be; None where a Trainer knows.
    beta1, beta2: of the means of sensitivity and uncertainty (eq. 9, 10).
    orth_weight: gamma of the penalty (section 3.1). orth_form: "squares" for eq. 4, the sum over layers of
    ||P^T P - I||^2 + ||Q Q^T - I||^2; "norms" for the mean of ||P^T P - I|| and ||Q Q^T - I||, which the authors' code and PEFT have.
    """

    name, diagonal, scales = "adalora", "lora_E", ("lora_E",)
    options: ClassVar[Mapping[str, Any]] = {
        "target_rank": None, "tinit": 0.1, "tfinal": 0.3, "deltaT": 1, "total_steps": None, "beta1": 0.85, "beta2": 0.85,
        "orth_weight": 0.1, "orth_form": "squares",
    }  # fmt: skip

    def option_faults(self, options: Mapping[str, Any]) -> Iterator[str]:
        """Unknown names and values out of range."""
        yield from super().option_faults(options)
        values = {**self.options, **options}
        target, total = values["target_rank"], values["total_steps"]
        if target is not None and (not is_number(target) or not 0 < target < 2**31):
            yield f"target_rank of the method 'adalora' must be a number above 0 or None, found {target!r}"
        if total is not None and (not is_integer(total) or total < 1):
            yield f"total_steps of the method 'adalora' must be a whole number of at least 1 or None, found {total!r}"
        if not is_integer(values["deltaT"]) or values["deltaT"] < 1:
            yield f"deltaT of the method 'adalora' must be a whole number of at least 1, found {values['deltaT']!r}"
        for name in ("tinit", "tfinal"):
            yield from steps_faults(self.name, name, values[name])
        for name in ("beta1", "beta2"):
            if not is_number(values[name]) or not 0 < values[name] < 1:
                yield f"{name} of the method 'adalora' must be a number in (0, 1), found {values[name]!r}"
        if not is_number(values["orth_weight"]) or not 0 <= values["orth_weight"] < float("inf"):
            yield f"orth_weight of the method 'adalora' must be a finite number of at least 0, found {values['orth_weight']!r}"
        if values["orth_form"] not in ("squares", "norms"):
            yield f"orth_form of the method 'adalora' must be 'squares' or 'norms', found {values['orth_form']!r}"

    def initial(self, weight: np.ndarray, rank: int, rng: np.random.Generator, options: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """lora_A (d, r) and lora_B (r, k) from N(0, 0.02^2), lora_E (r,) zero."""
        (d, k), dtype = weight.shape, weight.dtype
        a, b = (SPREAD * rng.standard_normal(shape) for shape in ((d, rank), (rank, k)))
        return {"lora_A": a.astype(dtype), "lora_E": np.zeros(rank, dtype), "lora_B": b.astype(dtype)}

    def controller(self, model: "LoraModel", adapter: str, steps: int | None) -> "Controller | None":
        """The penalty, the scores, and the cuts."""
        from ..budget import Budget

        return Budget(model, adapter, self, steps)


def steps_faults(method: str, name: str, value: Any) -> Iterator[str]:
    """What is wrong with a number of steps, or a share of all."""
    if not is_number(value) or value < 0 or (value >= 1 and value != int(value)):
        yield f"{name} of the method {method!r} must be a whole number of steps, or a share of all in [0, 1), found {value!r}"
