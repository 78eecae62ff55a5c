"""Rules that make each delta sparse and put together what is left: TIES, DARE, DELLA and what is between them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np

from ..errors import choices
from ..io.store import Option
from .election import ELECTIONS, elect_and_mean
from .pruning import Chance, Magnitude, MagPrune, Pruning
from .rules import Columns, DenseRule, Options, Passes, weight_sum_faults


class _Pruned(DenseRule):
    """A rule whose first step is to prune each adapter's delta."""

    pruning: ClassVar[Pruning]

    def option_faults(self, options: Options) -> Iterator[str]:
        """What is wrong with the options of the pruning."""
        return self.pruning.option_faults(options)

    def prepare(self, passes: Passes, shape: tuple[int, int], options: Options) -> Any:
        """What the pruning must know of a whole delta."""
        return self.pruning.prepare(passes, shape, options)

    def pruned(self, columns: Sequence[Columns], options: Options) -> list[np.ndarray]:
        """Each adapter's columns, pruned."""
        return [self.pruning.kept(one, options) for one in columns]


class _Added(_Pruned):
    """What is left is added, each times its adapter's weight."""

    def __init_subclass__(cls) -> None:
        cls.options = {**cls.pruning.options, "normalize": Option("divide by the sum of the weights", False)}

    def weight_faults(self, weights: Sequence[float], options: Options) -> Iterator[str]:
        """Weights whose sum is 0."""
        return weight_sum_faults(weights, options)

    def merge(self, columns: Sequence[Columns], weights: Sequence[float], options: Options) -> np.ndarray:
        """sum_i w_i pruned_i."""
        total = np.zeros_like(columns[0].values)
        for delta, weight in zip(self.pruned(columns, options), weights, strict=True):
            total += weight * delta
        return total / sum(weights) if options["normalize"] else total


class _Elected(_Pruned):
    """What is left votes for the sign of each entry, and those that have it are averaged."""

    def __init_subclass__(cls) -> None:
        elect = Option(f"what decides the sign: {choices(ELECTIONS)}", "total")
        normalize = Option("divide by the weights of those that agree, not by their number", False)
        cls.options = {**cls.pruning.options, "elect": elect, "normalize": normalize}

    def option_faults(self, options: Options) -> Iterator[str]:
        """Those of the pruning, and an election that is unknown."""
        yield from super().option_faults(options)
        if options["elect"] not in ELECTIONS:
            yield f"elect must be one of {choices(ELECTIONS)}, found {options['elect']!r}"

    def merge(self, columns: Sequence[Columns], weights: Sequence[float], options: Options) -> np.ndarray:
        """The disjoint mean."""
        return elect_and_mean(self.pruned(columns, options), weights, options["elect"], options["normalize"])


class MagnitudePrune(_Added):
    """sum_i w_i trim(delta_i), where trim keeps the largest entries."""

    name, title, pruning = "magnitude_prune", "sum of the largest entries of each", Magnitude()


class Ties(_Elected):
    """Trim, elect signs, mean of those that agree. Yadav et al. 2023, algorithm 1; weights scale what they belong to."""

    name, title, pruning = "ties", "largest entries of each, signs elected, mean of those that agree", Magnitude()


class Dare(_Added):
    """sum_i w_i drop(delta_i), where drop keeps entries by chance and scales them up. Yu et al. 2024, sec. 3."""

    name, title, pruning = "dare", "sum of entries kept by chance and scaled up", Chance()


class DareTies(_Elected):
    """DARE's drop, then the election and mean of TIES. Yu et al. 2024, sec. 3."""

    name, title, pruning = "dare_ties", "entries kept by chance, signs elected, mean of those that agree", Chance()


class Della(_Elected):
    """Drop, elect, fuse: DELLA's pruning, then the election and mean of TIES. Deep et al. 2024, sec. 3."""

    name, title, pruning = "della", "entries kept by chance, large ones rather; signs elected, mean of those that agree", MagPrune()


class DellaLinear(_Added):
    """DELLA's pruning without the election: sum_i w_i pruned_i."""

    name, title, pruning = "della_linear", "sum of entries kept by chance, large ones rather, and scaled up", MagPrune()
