"""Which sign an entry shall have where adapters disagree, and the mean of those that have it. Yadav et al. 2023, sec. 3."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

ELECTIONS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "total": lambda deltas, weights: deltas.sum(0),
    "weighted": lambda deltas, weights: np.tensordot(weights, deltas, 1),
    "frequency": lambda deltas, weights: np.sign(deltas).sum(0),
}
"""What the sign is taken of, from deltas (n, d, width) and weights of at least 0 (n,).

total: the sum of the deltas, so that mass decides, as in TIES. weighted: the same with each delta times its weight.
frequency: the number of positive entries less that of negative ones, so that the majority decides.
"""


def elect_and_mean(deltas: Sequence[np.ndarray], weights: Sequence[float], elect: str, normalize: bool) -> np.ndarray:
    """The sum of w delta over those adapters whose entry has the elected sign, over their number or, to normalize, their weights.

    (d, width) each. A negative weight negates its adapter before the election; one of 0 takes no part. Where the sign is a draw the
    positive ones win.
    """
    chosen = [(delta if weight > 0 else -delta, abs(weight)) for delta, weight in zip(deltas, weights, strict=True) if weight]
    if not chosen:
        return np.zeros_like(deltas[0])
    values, sizes = np.stack([delta for delta, _ in chosen]), np.array([size for _, size in chosen])
    positive = ELECTIONS[elect](values, sizes) >= 0
    agrees = np.where(positive, values > 0, values < 0)
    total = np.tensordot(sizes, values * agrees, 1)
    count = np.tensordot(sizes if normalize else np.ones_like(sizes), agrees, 1)
    return np.asarray(np.divide(total, count, out=np.zeros_like(total), where=count > 0))
