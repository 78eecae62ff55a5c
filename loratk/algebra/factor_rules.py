"""Rules that are sums of the deltas with one factor for each adapter: exact, by setting factors side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

import numpy as np

from ..exchange.factors import Pair
from ..io.store import Option
from .rounding import concatenated
from .rules import FactorRule, Options, weight_sum_faults


class Sum(FactorRule):
    """sum_i w_i delta_i. Task arithmetic (Ilharco et al. 2023, sec. 2), where a negative weight negates an adapter."""

    name, title = "sum", "weighted sum, exact; rank r1 + r2 + ..."

    def merge(self, pairs: Sequence[Pair], weights: Sequence[float], options: Options) -> Pair:
        """Factors side by side; what is zero, or has the weight 0, is left out."""
        return side_by_side(pairs, weights)


class Average(FactorRule):
    """sum_i w_i delta_i / sum_i w_i: the weighted average."""

    name, title = "linear", "weighted average, exact; rank r1 + r2 + ..."
    options: ClassVar[Mapping[str, Option]] = {"normalize": Option("divide by the sum of the weights", True)}

    def weight_faults(self, weights: Sequence[float], options: Options) -> Iterator[str]:
        """Weights whose sum is 0."""
        return weight_sum_faults(weights, options)

    def merge(self, pairs: Sequence[Pair], weights: Sequence[float], options: Options) -> Pair:
        """Factors side by side; what is zero, or has the weight 0, is left out."""
        whole = sum(weights) if options["normalize"] else 1.0
        return side_by_side(pairs, [weight / whole for weight in weights])


class SvdSum(FactorRule):
    """The best approximation of sum_i w_i delta_i of the rank that is asked for (Eckart & Young 1936)."""

    name, title, exact = "svd", "weighted sum, rounded by its singular values", False

    def merge(self, pairs: Sequence[Pair], weights: Sequence[float], options: Options) -> Pair:
        """The exact sum, which is then rounded."""
        return side_by_side(pairs, weights)


def side_by_side(pairs: Sequence[Pair], weights: Sequence[float]) -> Pair:
    """The weighted sum of pairs, without those that add nothing; a pair of zeros of rank 1 where none adds anything."""
    live = [(pair, weight) for pair, weight in zip(pairs, weights, strict=True) if weight and pair[0].any() and pair[1].any()]
    if not live:
        return np.zeros((len(pairs[0][0]), 1)), np.zeros((1, pairs[0][1].shape[1]))
    return concatenated([pair for pair, _ in live], [weight for _, weight in live])
