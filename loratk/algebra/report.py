"""The interference report as plain data: adapters, pairs of them, and each pair's modules."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .energy import AdapterEnergy
from .overlap import SharedSpace, Sum
from .signs import SignConflicts


@dataclass(frozen=True)
class ModuleInterference:
    """One module of two adapters.

    faults: why it cannot be compared; all else is None then. sum: norms, cosine and what they add up to. inputs, outputs: what they share
    of the spaces they read and write. shares: of each one's energy, what lies in both spaces of the other. signs: how often they pull an
    entry in opposite directions.
    """

    name: str
    faults: list[str]
    sum: Sum | None = None
    inputs: SharedSpace | None = None
    outputs: SharedSpace | None = None
    shares: tuple[float, float] | None = None
    signs: SignConflicts | None = None

    @property
    def compared(self) -> bool:
        """Whether it could be compared."""
        return not self.faults


@dataclass(frozen=True)
class PairInterference:
    """Two adapters. The numbers are of whole adapters: their updates of all modules that were measured as one vector each.

    sum: with modules of one only in the norms; those that cannot be compared are left out. shares: of each one's energy, what lies in the
    other's spaces of inputs, of outputs, and of both. sign_conflicts: the share of the entries of modules in both that have opposite signs,
    with its standard error.
    """

    a: str
    b: str
    sum: Sum
    shares: dict[str, tuple[float, float]]
    sign_conflicts: float | None
    sign_error: float | None
    modules: list[ModuleInterference]
    only_a: list[str]
    only_b: list[str]

    @property
    def not_compared(self) -> dict[str, list[str]]:
        """The modules in both that cannot be compared, and why."""
        return {module.name: module.faults for module in self.modules if not module.compared}


@dataclass(frozen=True)
class Interference:
    """The report: each adapter, each pair, and a line for what had to be decided or is worth a second look."""

    adapters: list[AdapterEnergy]
    pairs: list[PairInterference]
    notes: list[str]

    def matrix(self) -> list[list[float | None]]:
        """The cosine of each two adapters, in their order; None where an adapter is zero."""
        place = {adapter.label: number for number, adapter in enumerate(self.adapters)}
        cosines: list[list[float | None]] = [[1.0 if i == j and one.norm else None for j in range(len(place))]
                                             for i, one in enumerate(self.adapters)]  # fmt: skip
        for pair in self.pairs:
            i, j = place[pair.a], place[pair.b]
            cosines[i][j] = cosines[j][i] = pair.sum.cosine
        return cosines

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values that JSON can hold; angles are in radians, shares from 0 to 1."""
        found = asdict(self)
        for adapter, plain in zip(self.adapters, found["adapters"], strict=True):
            plain |= {"zero": adapter.zero, "spikes": adapter.spikes, "intruders": adapter.intruders}
        for pair, plain in zip(self.pairs, found["pairs"], strict=True):
            for module, inner in zip(pair.modules, plain["modules"], strict=True):
                if module.signs is not None:
                    inner["signs"]["exact"] = module.signs.exact
        return {**found, "cosines": self.matrix()}


def pair_of(
    a: AdapterEnergy, b: AdapterEnergy, modules: list[ModuleInterference], only_a: list[str], only_b: list[str]
) -> PairInterference:
    """The numbers of whole adapters, from those of their modules."""
    compared = [module for module in modules if module.compared]
    norms = [_norms(adapter, alone, [module.sum.norms[side] for module in compared if module.sum])
             for side, (adapter, alone) in enumerate(((a, only_a), (b, only_b)))]  # fmt: skip
    shares = {}
    for what, of in SHARES.items():
        first, second = (_share([of(module, side) for module in compared], norms[side][1]) for side in (0, 1))
        shares[what] = first, second
    total = sum(module.signs.total for module in compared if module.signs)
    opposed = error = None
    if total:
        opposed = math.fsum(module.signs.share * module.signs.total for module in compared if module.signs) / total
        error = math.hypot(*(module.signs.error * module.signs.total for module in compared if module.signs)) / total
    return PairInterference(a.label, b.label, _whole(compared, norms), shares, opposed, error, modules, only_a, only_b)


SHARES = {
    "inputs": lambda module, side: (module.sum.norms[side], module.inputs.shares[side]),
    "outputs": lambda module, side: (module.sum.norms[side], module.outputs.shares[side]),
    "both": lambda module, side: (module.sum.norms[side], module.shares[side]),
}


def _norms(adapter: AdapterEnergy, alone: Sequence[str], compared: Sequence[float]) -> tuple[float, float]:
    """The norm of the modules that only this adapter has, and of all that are counted."""
    left = set(alone)
    own = math.hypot(*(layer.norm for layer in adapter.layers if layer.name in left))
    return own, math.hypot(own, *compared)


def _share(parts: Sequence[tuple[float, float]], whole: float) -> float:
    return math.fsum((norm / whole) ** 2 * share for norm, share in parts) if whole else 0.0


def _whole(compared: Sequence[ModuleInterference], norms: Sequence[tuple[float, float]]) -> Sum:
    (own, one), (others, two) = norms
    scale = max(one, two)
    if not scale:
        return Sum((0.0, 0.0), None, 0.0, 0.0)
    sums = [module.sum for module in compared if module.sum]
    inner = math.fsum(found.interference / 2 * math.hypot(found.norms[0] / scale, found.norms[1] / scale) ** 2 for found in sums)
    a, b = one / scale, two / scale
    cosine = max(-1.0, min(1.0, inner / a / b)) if a and b else None
    return Sum((one, two), cosine, math.hypot(own, others, *(found.norm for found in sums)), 2 * inner / (a**2 + b**2))
