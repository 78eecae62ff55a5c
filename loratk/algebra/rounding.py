"""Low-rank updates by their factors: singular value decomposition, exact weighted sums, and the best pair of a lower rank.

With A = Q R and the transpose of B = P S (QR decompositions), A B = Q (R S^T) P^T: the singular values of the small core R S^T are those of
A B, and Q and P turn its singular vectors into those of A B. It costs O((d + k) r^2), where a dense decomposition costs O(d k min(d, k)).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import AnomalyError, ConfigError, ShapeError
from ..exchange.factors import Pair
from .ranks import Rule, lost

EPS = float(np.finfo(np.float64).eps)


@dataclass(frozen=True, eq=False)
class Svd:
    """A singular value decomposition without the zeros: u (d, q), s (q,) falling, v (q, k), and u diag(s) v the matrix."""

    u: np.ndarray
    s: np.ndarray
    v: np.ndarray

    def pair(self, rank: int) -> Pair:
        """The best pair (d, rank), (rank, k) (Eckart & Young 1936), the root of each singular value in both; zeros beyond the last."""
        kept = min(rank, len(self.s))
        root = np.sqrt(self.s[:kept])
        a, b = np.zeros((len(self.u), rank)), np.zeros((rank, self.v.shape[1]))
        a[:, :kept], b[:kept] = self.u[:, :kept] * root, root[:, None] * self.v[:kept]
        return a, b


@dataclass(frozen=True, eq=False)
class Rounded:
    """A pair of lower rank, the relative Frobenius error against what it was made of, and the share of the energy that is kept.

    capped: whether the cap on the rank cut what the other rules asked for.
    """

    pair: Pair
    rank: int
    error: float
    energy: float
    capped: bool = False


def svd(pair: Pair) -> Svd:
    """The singular value decomposition of A B from its factors: (d, r), (r, k) -> u (d, q), s (q,), v (q, k), q = min(d, r, k).

    Right for numbers of any size whose product fits into float64, and for every shape, also r above d or k. Singular values that are not
    above the rounding error of the product, as of an update minus itself, are 0. Raises ShapeError, and AnomalyError where a factor or the
    product is not finite.
    """
    a, b, exponent = _balanced(pair)
    (q, r), (p, s) = orthonormal(a), orthonormal(b.T)
    left, values, right = np.linalg.svd(r @ s.T, full_matrices=False)
    values = np.where(values > _noise(a, b), values, 0.0)
    with np.errstate(over="ignore"):
        values = np.ldexp(values, exponent)
    if not np.isfinite(values).all():
        raise AnomalyError("the product of the factors is too large for float64; check the adapter's numbers and its scaling")
    return Svd(q @ left, values, right @ p.T)


def concatenated(pairs: Sequence[Pair], weights: Sequence[float] | None = None) -> Pair:
    """The weighted sum of updates, exactly: factors side by side, (d, r1 + r2 + ...), (r1 + r2 + ..., k), each weight in its B.

    Raises ConfigError for no pair or as many weights as there are not pairs, ShapeError for updates of different shapes.
    """
    weights = [1.0] * len(pairs) if weights is None else [float(weight) for weight in weights]
    if not pairs or len(weights) != len(pairs):
        raise ConfigError(f"a sum needs a weight for each update and at least one, found {len(pairs)} updates and {len(weights)} weights")
    if not all(map(math.isfinite, weights)):
        raise ConfigError(f"weights must be finite numbers, found {weights}")
    if len({(a.shape[0], b.shape[1]) for a, b in pairs}) > 1:
        raise ShapeError(f"updates to be added must have one shape, found {', '.join(f'{len(a)}x{b.shape[1]}' for a, b in pairs)}")
    wide = [(a.astype(np.float64), b.astype(np.float64) * weight) for (a, b), weight in zip(pairs, weights, strict=True)]
    return np.hstack([a for a, _ in wide]), np.vstack([b for _, b in wide])


def rounded(
    pair: Pair, *, rank: int | None = None, ratio: float | None = None, energy: float | None = None, error: float | None = None
) -> Rounded:
    """The best pair of the rank that the rules need (`ranks.Rule`): `rank` caps it, of the others the one that needs most decides.

    With no rule the least rank that loses nothing. Factors are balanced: the root of each singular value is in both. An update that is zero
    becomes a pair of zeros of rank 1, with error 0 and energy 1.
    """
    rule, whole = Rule(rank, ratio, energy, error), svd(pair)
    needed = rule.needed([whole.s])
    kept = rule.choose([whole.s])
    left_out = lost([whole.s], kept)
    return Rounded(whole.pair(kept), kept, left_out, 1 - left_out**2, kept < needed)


def orthonormal(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Q and R of the QR decomposition: (m, n) -> (m, min(m, n)), (min(m, n), n).

    Of tall ones block by block of rows, then of the stacked triangles (Demmel et al. 2012, sec. 3), as `factors.triangle`, with Q.
    """
    m, n = matrix.shape
    rows = max(4 * n, 64)
    if m < 2 * rows or not n:
        q, r = np.linalg.qr(matrix)
        return q, r
    whole = m // rows * rows
    blocks, triangles = np.linalg.qr(np.ascontiguousarray(matrix[:whole]).reshape(-1, rows, n))
    inner, r = orthonormal(np.concatenate([triangles.reshape(-1, n), matrix[whole:]]))
    count = whole // rows * n
    top = (blocks @ inner[:count].reshape(-1, n, n)).reshape(whole, n)
    return np.concatenate([top, inner[count:]]), r


def noise(pair: Pair) -> float:
    """What rounding can leave of A B where it should be 0: 16 eps sum_i ||a_i|| ||b_i||, over columns of A and rows of B."""
    a, b, exponent = _balanced(pair)
    with np.errstate(over="ignore"):
        return float(np.ldexp(_noise(a, b), exponent))


def _noise(a: np.ndarray, b: np.ndarray) -> float:
    return 16 * EPS * float(np.linalg.norm(a, axis=0) @ np.linalg.norm(b, axis=1))


def _balanced(pair: Pair) -> tuple[np.ndarray, np.ndarray, int]:
    """A and B in float64 with each column of A as large as its row of B, and the power of two that their product lacks: exact."""
    a, b = (np.asarray(factor, np.float64) for factor in pair)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != len(b):
        raise ShapeError(f"the factors must be (d, r) and (r, k), found {a.shape} and {b.shape}")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise AnomalyError("the factors hold NaN or infinite numbers: training diverged")
    sizes = np.abs(a).max(axis=0, initial=0.0), np.abs(b).max(axis=1, initial=0.0)
    left, right = (np.frexp(size)[1].astype(np.int64) for size in sizes)
    live = (sizes[0] > 0) & (sizes[1] > 0)
    exponent = int((left + right)[live].max(initial=-(1 << 20)))
    if not live.any():
        exponent = 0
    half = np.where(live, left + right - exponent, 0) // 2
    rest = np.where(live, left + right - exponent, 0) - half
    return np.ldexp(a, half - left), np.ldexp(b, (rest - right)[:, None]), exponent
