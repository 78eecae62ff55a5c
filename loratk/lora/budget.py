"""AdaLoRA around the steps of training: what each rank is worth, how many there may be, and which are switched off.

Zhang et al. 2023, algorithm 1. Steps count from 1. In each step but the last `tfinal` the sensitivity I = |w dL/dw| of every
parameter (eq. 8) goes into the means I' = beta1 I' + (1 - beta1) I (eq. 9) and U' = beta2 U' + (1 - beta2) |I - I'| (eq. 10), s = I' U'
(eq. 11), and rank i of a layer is worth S_i = s(lambda_i) + mean_j s(P_ji) + mean_j s(Q_ij) (eq. 7). After the optimiser's step the
lambdas of all but the best b(t) ranks of all layers are set to 0 (eq. 6); the gradient may bring them back until the last cut.

Where the paper and its code differ: b(t) = b(T) + (b(0) - b(T)) (1 - (t - tinit) / (T - tfinal - tinit))^3 as in the code, for eq. 12
as it is printed lies above b(0) at first. Sensitivities are those of the weights that the gradient was taken at, as in algorithm 1, and
those of the last cut's own step count; the code, and the loop that PEFT's documentation shows, multiply the gradient with the weights
after the optimiser's step, and leave that last step out. Ranks of equal worth are cut one by one, the later layers' first, so that b(t)
are left; PEFT cuts all that are worth no more than the threshold, and fails where b(t) = b(0).
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ..autograd import Tensor, ops
from ..errors import ConfigError
from .control import Controller, check_shapes, gradient, put
from .parts import options_of, trained_by

if TYPE_CHECKING:
    from .methods import Method
    from .model import LoraModel

PARAMETERS = ("lora_A", "lora_E", "lora_B")


class Budget(Controller):
    """The shared budget of ranks of an adapter. Raises ConfigError for a schedule that leaves no step to cut in, or nothing to cut."""

    def __init__(self, model: "LoraModel", adapter: str, method: "Method", steps: int | None) -> None:
        self._find = lambda: trained_by(model, adapter, method)
        self.parts = self._find()
        self._shapes = self._shapes_now()
        options: Mapping[str, Any] = options_of(self.parts, method)
        total = options["total_steps"] or steps
        if total is None:
            raise ConfigError(
                f"AdaLoRA must know how many steps there will be, and nobody knows for the adapter {adapter!r}: set its option total_steps."
            )
        self.total, self.step = int(total), 0
        self.first, self.final = (in_steps(options[name], self.total) for name in ("tinit", "tfinal"))
        if self.first >= self.total - self.final:
            raise ConfigError(
                f"AdaLoRA of the adapter {adapter!r} has no step in which to cut ranks: tinit is {self.first}, tfinal {self.final}, of "
                f"{self.total} steps in all. Make them fewer, or train longer."
            )
        self.start = sum(part.rank for part in self.parts.values())
        target = options["target_rank"]
        self.target = round(self.start / 1.5) if target is None else round(target * len(self.parts))
        if self.target >= self.start:
            mean = self.start / len(self.parts)
            raise ConfigError(
                f"AdaLoRA of the adapter {adapter!r} begins with a mean rank of {mean:g} and shall end with "
                f"{self.target / len(self.parts):g}: nothing would be cut. Give it a larger rank, or a smaller target_rank."
            )
        self.every, self.beta1, self.beta2 = options["deltaT"], options["beta1"], options["beta2"]
        self.orth_weight, self.orth_form = options["orth_weight"], options["orth_form"]
        self.sensitivity = {name: {key: np.zeros_like(vars(p)[key].numpy()) for key in PARAMETERS} for name, p in self.parts.items()}
        self.uncertainty = {name: {key: np.zeros_like(array) for key, array in held.items()} for name, held in self.sensitivity.items()}
        self.masks = {name: np.ones(part.rank, bool) for name, part in self.parts.items()}

    def budget(self, step: int) -> int:
        """b(t): how many ranks all layers together may have after a step."""
        if step <= self.first:
            return self.start
        if step >= self.total - self.final:
            return self.target
        left = 1 - (step - self.first) / (self.total - self.final - self.first)
        return int((self.start - self.target) * left**3 + self.target)

    def scores(self) -> dict[str, np.ndarray]:
        """S (r,) of each layer, by the means so far."""
        found = {}
        for name in self.parts:
            a, e, b = (self.sensitivity[name][key] * self.uncertainty[name][key] for key in PARAMETERS)
            found[name] = e + a.mean(axis=0) + b.mean(axis=1)
        return found

    def before_step(self) -> None:
        """Raise StateError if the adapter was resized."""
        check_shapes(self._shapes, self._shapes_now())

    def penalty(self) -> Tensor | None:
        """gamma R(P, Q)."""
        if not self.orth_weight:
            return None
        squares = [_distance(gram) for part in self.parts.values() for gram in _grams(vars(part)["lora_A"], vars(part)["lora_B"])]
        if self.orth_form == "norms":
            tiny = np.finfo(squares[0].dtype).tiny  # the root has no derivative at 0
            squares = [ops.sqrt(ops.maximum(square, squares[0].dtype.type(tiny))) for square in squares]
        total = squares[0]
        for square in squares[1:]:
            total = total + square
        return total * (self.orth_weight if self.orth_form == "squares" else self.orth_weight / len(squares))

    def before_update(self) -> None:
        """Sensitivities by the step's gradients, and their means."""
        self.step += 1
        if self.step > self.total - self.final:
            return
        for name, part in self.parts.items():
            for key in PARAMETERS:
                parameter, mean, spread = vars(part)[key], self.sensitivity[name][key], self.uncertainty[name][key]
                now = np.abs(parameter.numpy() * gradient(parameter))
                mean[...] = self.beta1 * mean + (1 - self.beta1) * now
                spread[...] = self.beta2 * spread + (1 - self.beta2) * np.abs(now - mean)

    def after_update(self, lr: float) -> None:
        """Cut to the budget, where it is time to; after the last cut, once more what that cut."""
        last = self.total - self.final
        if self.first < self.step <= last and (self.step == last or self.step % self.every == 0):
            self._allot(self.budget(self.step))
        elif self.step <= last:
            return
        for name, part in self.parts.items():
            values = vars(part)["lora_E"]
            put(values, np.where(self.masks[name], values.numpy(), 0))

    def _allot(self, budget: int) -> None:
        scores = self.scores()
        together = np.concatenate(list(scores.values()))
        best = np.zeros(len(together), bool)
        best[np.argsort(-together, kind="stable")[:budget]] = True
        ends = np.cumsum([len(score) for score in scores.values()])[:-1]
        self.masks = dict(zip(scores, np.split(best, ends), strict=True))

    def record(self) -> Mapping[str, float]:
        """`ranks`: how many all layers have together, by the last cut."""
        return {"ranks": int(sum(mask.sum() for mask in self.masks.values()))}

    def state_dict(self) -> dict[str, Any]:
        """The step, the means and the masks."""
        state: dict[str, Any] = {"step": self.step}
        for i, name in enumerate(self.parts):
            state[f"{i}.mask"] = self.masks[name].astype(np.uint8)
            for key in PARAMETERS:
                state |= {f"{i}.{key}.sensitivity": self.sensitivity[name][key], f"{i}.{key}.uncertainty": self.uncertainty[name][key]}
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.step = state["step"]
        for i, name in enumerate(self.parts):
            self.masks[name] = state[f"{i}.mask"].astype(bool)
            for key in PARAMETERS:
                self.sensitivity[name][key] = np.array(state[f"{i}.{key}.sensitivity"])
                self.uncertainty[name][key] = np.array(state[f"{i}.{key}.uncertainty"])

    def _shapes_now(self) -> dict[str, tuple[Any, ...]]:
        return {name: (part.d, part.rank, part.k) for name, part in self._find().items()}


def in_steps(value: float, total: int) -> int:
    """A number of steps, which below 1 is a share of all."""
    return round(value * total) if value < 1 else int(value)


def _grams(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    return ops.transpose(a, (1, 0)) @ a, b @ ops.transpose(b, (1, 0))


def _distance(gram: Tensor) -> Tensor:
    """||gram - I||^2."""
    return ops.sum_over(ops.square(gram - np.eye(len(gram), dtype=gram.dtype)))
