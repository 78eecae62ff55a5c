"""CorDA: the weight's singular directions as the layer's inputs weigh them."""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np

from ...errors import choices
from .base import Gatherer, Init, Start, Started, started
from .gatherers import SecondMoments
from .svd import halves, scaling_faults, svd

MODES = ("ipm", "kpm")
LARGEST = 1 << 14
"""Beyond as many inputs the (d, d) matrix of a layer, float64, takes more than 2 GiB."""


class Corda(Init):
    """Of C W, C = E[x^T x] of the inputs, r singular triplets train, and their part of W is taken off. Yang et al. 2024, eq. 2 to 6.

    With C W = V S U^T: A = C^-1 V_r sqrt(S_r / scaling), B = sqrt(S_r / scaling) U_r^T. `mode` "ipm" (instruction-previewed) takes the
    largest, so that what the data asks for trains; "kpm" (knowledge-preserved) the smallest, so that what the data knows stays. To C is
    added 0.01 of its mean diagonal, doubled until the inverse is exact to 0.05, as in the authors' code.
    """

    name, needs, moves_base = "corda", "inputs", True
    options: ClassVar[Mapping[str, Any]] = {"mode": "ipm"}

    def option_faults(self, options: Mapping[str, Any]) -> Iterator[str]:
        """An unknown one, or an unknown mode."""
        yield from super().option_faults(options)
        if (mode := options.get("mode", "ipm")) not in MODES:
            yield f"mode of the init 'corda' must be one of {choices(MODES)}, found {mode!r}"

    def layer_faults(self, d: int, k: int, rank: int, scaling: float, options: Mapping[str, Any]) -> Iterator[str]:
        """A scaling of 0, or so many inputs that their moments would fill the memory."""
        yield from scaling_faults(self.name, scaling)
        if d > LARGEST:
            yield f"the init 'corda' keeps a (d, d) matrix of the inputs, and d is {d}, above {LARGEST}; exclude it"

    def gather(self, d: int, k: int, rank: int, options: Mapping[str, Any]) -> Gatherer:
        """Second moments."""
        return SecondMoments(d)

    def start(self, start: Start) -> Started:
        """lora_A (d, r), lora_B (r, k)."""
        moments = damped(start.evidence.mean())
        v, s, u = svd(moments @ start.weight.astype(np.float64), start.rank)
        chosen = slice(start.rank) if start.options["mode"] == "ipm" else slice(len(s) - start.rank, None)
        a, b = halves(v[:, chosen], s[chosen], u[chosen], start.scaling, s[0])
        return started(start, np.linalg.solve(moments, a), b)


def damped(moments: np.ndarray) -> np.ndarray:
    """A second moment with so much on its diagonal that its inverse is sound."""
    mean, one = float(np.mean(np.diagonal(moments))), np.eye(len(moments))
    damp, found = 0.01, one
    while mean > 0:
        found = moments + damp * mean * one
        if np.linalg.norm(found @ np.linalg.inv(found) - one) < 0.05:
            break
        damp *= 2
    return found
