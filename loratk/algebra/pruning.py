"""Ways to make a delta sparse: the largest entries (TIES), any entries (DARE), or large ones more likely than small ones (DELLA)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ..io.store import Option
from .rules import Columns, Options, Passes

DENSITY = Option("share of the entries to keep, above 0, up to 1", 0.5)
GATHERED = 1 << 22
"""Entries among which a threshold is found by sorting; among more, by counting their leading bits first."""
BITS = 16


class Pruning:
    """A way to make a delta sparse."""

    options: ClassVar[Mapping[str, Option]] = {"density": DENSITY}

    def option_faults(self, options: Options) -> Iterator[str]:
        """What is wrong with its options."""
        if not 0 < options["density"] <= 1:
            yield f"density must be above 0, up to 1, found {options['density']:g}"

    def prepare(self, passes: Passes, shape: tuple[int, int], options: Options) -> Any:
        """What must be known of the whole delta first."""
        return None

    def kept(self, columns: Columns, options: Options) -> np.ndarray:
        """The columns, 0 where an entry is dropped, and else the entry times what makes up for that: (d, width)."""
        raise NotImplementedError


@dataclass(frozen=True)
class Threshold:
    """The least magnitude that is kept, and from where on entries of just that magnitude are not.

    Those are dropped from column `column` on, and in `column` itself from row `row` on.
    """

    least: float
    column: int
    row: int


class Magnitude(Pruning):
    """Keeps the floor(density n) entries of the largest magnitude, at least one, as they are. Yadav et al. 2023, sec. 3 (trim).

    Of equal ones the first are kept, column by column.
    """

    def prepare(self, passes: Passes, shape: tuple[int, int], options: Options) -> Threshold:
        """The threshold."""
        d, k = shape
        count = max(1, math.floor(options["density"] * d * k * (1 + 1e-12)))
        if count >= d * k:
            return Threshold(0.0, k, 0)
        least, above, equal = largest(passes, count)
        spared = (k, 0) if above + equal == count else _first_spare(passes, shape, least, count - above)
        return Threshold(least, *spared)

    def kept(self, columns: Columns, options: Options) -> np.ndarray:
        """Those at least as large as the threshold."""
        values, at = columns.values, columns.prepared
        size = np.abs(values)
        keep = size > at.least
        ties = size == at.least
        if ties.any():
            ties[:, max(0, at.column + 1 - columns.start) :] = False
            if 0 <= (here := at.column - columns.start) < values.shape[1]:
                ties[at.row :, here] = False
            keep |= ties
        return np.where(keep, values, 0.0)


class Chance(Pruning):
    """Keeps each entry with the probability `density`, and divides it by that. Yu et al. 2024, sec. 3 (drop and rescale)."""

    def kept(self, columns: Columns, options: Options) -> np.ndarray:
        """Those whose number is below density."""
        density = options["density"]
        return columns.values if density == 1 else np.where(columns.draw() < density, columns.values / density, 0.0)


class MagPrune(Pruning):
    """Keeps the entry of rank j among the n of its output, the smallest first, with the probability p_j, and divides it by p_j.

    p_j = density - epsilon + 2 epsilon (j - 1) / (n - 1). Deep et al. 2024, sec. 3, with epsilon as in the authors' code: half the
    width of the window. The ranks are among the weights of one output, a column.
    """

    options: ClassVar[Mapping[str, Option]] = {
        "density": DENSITY,
        "epsilon": Option("how far the probability goes below and above density", 0.1),
    }

    def option_faults(self, options: Options) -> Iterator[str]:
        """Probabilities outside of (0, 1]; at density 1 nothing is dropped."""
        density, epsilon = options["density"], options["epsilon"]
        yield from super().option_faults(options)
        if epsilon < 0 or (density < 1 and not epsilon < density <= 1 - epsilon):
            yield f"density - epsilon must be above 0 and density + epsilon at most 1, found density {density:g} and epsilon {epsilon:g}"

    def kept(self, columns: Columns, options: Options) -> np.ndarray:
        """Those whose number is below their probability."""
        values, density, epsilon = columns.values, options["density"], options["epsilon"]
        if density == 1:
            return values
        n = len(values)
        order = np.argsort(np.abs(values), axis=0, kind="stable")
        share = np.linspace(-1.0, 1.0, n) if n > 1 else np.zeros(1)
        chance = np.empty_like(values)
        np.put_along_axis(chance, order, np.broadcast_to((density + epsilon * share)[:, None], values.shape), axis=0)
        return np.where(columns.draw() < chance, values / chance, 0.0)


def largest(passes: Passes, count: int) -> tuple[float, int, int]:
    """The magnitude of the `count`-th entry by magnitude, how many are larger and how many equal: exact, in memory for GATHERED entries.

    Magnitudes as whole numbers sort as they are (IEEE 754), so their leading bits, then the next, tell the bin that holds the entry.
    """
    prefix, shift, above = 0, 64, 0
    while shift:
        shift -= BITS
        counts = np.zeros(1 << BITS, np.int64)
        for bits in _within(passes, prefix, shift + BITS):
            counts += np.bincount(((bits >> np.uint64(shift)) & np.uint64((1 << BITS) - 1)).astype(np.int64), minlength=1 << BITS)
        more = np.cumsum(counts[::-1])[::-1]  # those of this bin or above
        place = int(np.flatnonzero(above + more >= count)[-1])
        above += int(more[place] - counts[place])
        prefix = prefix << BITS | place
        if counts[place] <= GATHERED:
            found = np.sort(np.concatenate(list(_within(passes, prefix, shift))))[::-1]
            value = found[count - above - 1]
            larger, equal = (int(np.count_nonzero(same)) for same in (found > value, found == value))
            return float(value.view(np.float64)), above + larger, equal
    return float(np.uint64(prefix).view(np.float64)), above, int(counts[place])


def _within(passes: Passes, prefix: int, shift: int) -> Iterator[np.ndarray]:
    """The magnitudes, as whole numbers, that begin with these bits; `shift` bits follow."""
    for block in passes():
        bits = np.abs(block).view(np.uint64).ravel()
        yield bits if shift == 64 else bits[bits >> np.uint64(shift) == prefix]


def _first_spare(passes: Passes, shape: tuple[int, int], least: float, wanted: int) -> tuple[int, int]:
    """Where the first entry of just this magnitude is that is not among the first `wanted` of them: column and row."""
    start = 0
    for block in passes():
        ties = np.flatnonzero(np.abs(block).T.ravel() == least)
        if len(ties) > wanted:
            column, row = divmod(int(ties[wanted]), shape[0])
            return start + column, row
        wanted -= len(ties)
        start += block.shape[1]
    return shape[1], 0
