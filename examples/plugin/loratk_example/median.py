"""A merge rule: the median of what adapters add to each weight."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from loratk.algebra import Columns, DenseRule


class Median(DenseRule):
    """The median over adapters of w_i delta_i, entry by entry: one adapter of many that is far off does not count.

    An adapter that does not have a module adds zeros there. Of an even number it is the mean of the two in the middle.
    """

    name, title = "median", "median of what each adds, entry by entry"

    def merge(self, columns: Sequence[Columns], weights: Sequence[float], options: Mapping[str, Any]) -> np.ndarray:
        """Columns of the median."""
        return np.median([weight * one.values for one, weight in zip(columns, weights, strict=True)], axis=0)
