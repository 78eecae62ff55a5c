"""LoRA-GA: a first step that follows the gradient of full fine-tuning."""

import math
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np

from ...errors import choices
from ..settings import is_number
from .base import Init, Start, Started, started
from .svd import niter_faults, scaling_faults, svd

DIRECTIONS = ("ArB2r", "A2rBr", "ArBr", "random")
SCALES = ("stable", "gd", "unit", "weightS")


class LoraGa(Init):
    """A and B are singular vectors of the gradient G = U S V^T of the loss for W, and scaling A B is taken off. Wang et al. 2024, sec. 3.

    As the authors' code has it (PEFT 0.21's differs: there B is times S, and the scale is in B alone). No singular value is in A or B.
    `direction`: A of U, B of V^T, of the 2r leading ones: "ArB2r" the first r for A and the rest for B, "A2rBr" the other way round,
    "ArBr" every other one, A from the second on, "random" r at random for A and the rest for B.
    `scale`: "stable" both times k^(1/4) / sqrt(gamma) (theorem 3.2 there), "gd" both over the scaling, "unit" as they are, "weightS" both
    times the mean of sqrt(S_W / scaling) over the r largest singular values of W.
    `norm_clip`: scaled down where the largest entry of scaling A B is above the weight's. `niter`: of the random projections by which G is
    decomposed; None for the exact decomposition.
    """

    name, needs, moves_base = "lora_ga", "gradients", True
    options: ClassVar[Mapping[str, Any]] = {"direction": "ArB2r", "scale": "stable", "gamma": 16, "norm_clip": False, "niter": 4}

    def option_faults(self, options: Mapping[str, Any]) -> Iterator[str]:
        """An unknown one, or a value that it does not know."""
        yield from super().option_faults(options)
        values = {**self.options, **options}
        for name, known in (("direction", DIRECTIONS), ("scale", SCALES)):
            if values[name] not in known:
                yield f"{name} of the init 'lora_ga' must be one of {choices(known)}, found {values[name]!r}"
        if not is_number(values["gamma"]) or not 0 < values["gamma"] < math.inf:
            yield f"gamma of the init 'lora_ga' must be a number above 0, found {values['gamma']!r}"
        if not isinstance(values["norm_clip"], bool):
            yield f"norm_clip of the init 'lora_ga' must be True or False, found {values['norm_clip']!r}"
        yield from niter_faults(self.name, values["niter"])

    def layer_faults(self, d: int, k: int, rank: int, scaling: float, options: Mapping[str, Any]) -> Iterator[str]:
        """Fewer than 2r directions, or a scaling of 0."""
        yield from scaling_faults(self.name, scaling)
        if 2 * rank > min(d, k):
            yield f"the init 'lora_ga' takes 2 * rank = {2 * rank} directions, and the weight ({d}, {k}) has {min(d, k)}; halve the rank"

    def start(self, start: Start) -> Started:
        """lora_A (d, r), lora_B (r, k)."""
        r, options, weight = start.rank, start.options, start.weight.astype(np.float64)
        u, _, v = svd(start.evidence, 2 * r, options["niter"], start.rng)
        for_a, for_b = _places(options["direction"], r, start.rng)
        a, b = u[:, for_a], v[for_b]
        factor = _factor(options, weight, start)
        a, b = a * factor, b * factor
        if options["norm_clip"]:
            product, largest = start.scaling * np.abs(a @ b).max(), np.abs(weight).max()
            root = math.sqrt(min(1.0, largest / product))
            a, b = a * root, b * root
        return started(start, a, b)


def _places(direction: str, r: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Which of the 2r leading directions are for A, and which for B."""
    both = rng.permutation(2 * r) if direction == "random" else np.arange(2 * r)
    if direction == "ArBr":
        return both[1::2], both[0::2]
    first, second = both[:r], both[r:]
    return (second, first) if direction == "A2rBr" else (first, second)


def _factor(options: Mapping[str, Any], weight: np.ndarray, start: Start) -> float:
    if options["scale"] == "stable":
        return float(weight.shape[1] ** 0.25 / math.sqrt(options["gamma"]))
    if options["scale"] == "gd":
        return 1 / start.scaling
    if options["scale"] == "weightS":
        _, s, _ = svd(weight, start.rank, options["niter"], start.rng)
        return float(np.mean(np.sqrt(s[: start.rank] / start.scaling)))
    return 1.0
