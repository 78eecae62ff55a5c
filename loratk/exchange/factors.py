"""Low-rank updates by their factors: norms, singular values, differences and products in O((d + k) r^2), never a (d, k) matrix.

With A = Q R and the transpose of B = P S (QR decompositions), A B = Q (R S^T) P^T, so what does not depend on the frame can be read off the
core R S^T, (r, r): its singular values are those of A B, its Frobenius norm is that of A B.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Pair = tuple[np.ndarray, np.ndarray]


def update_pairs(record: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> list[Pair]:
    """What a module with lora_A and lora_B adds, as pairs A (d, r'), B (r', k') in float64, whose products are parts that share no entry.

    One pair for most; one for each group of a grouped convolution (its columns) and for each expert of a stack. The scaling is in B, and a
    learned gain; in A a diagonal between both (AdaLoRA, SoRA). First factors that were taken off the weight are beside the others: [A, A0]
    and [B; -B0].
    """
    a, b = (tensors[name].astype(np.float64) for name in ("lora_A", "lora_B"))
    with np.errstate(over="ignore", invalid="ignore"):
        b = b * float(record["scaling"])
        for diagonal in ("lora_E", "gate"):
            if diagonal in tensors:
                a = a * tensors[diagonal].astype(np.float64)
        if "gain" in tensors:
            b = b * tensors["gain"].astype(np.float64)
        if "initial_A" in tensors:
            first = tensors["initial_B"].astype(np.float64) * -float(record["scaling"])
            a, b = np.concatenate([a, tensors["initial_A"]], axis=-1), np.concatenate([b, first], axis=-2)
    if "experts" in record:
        return list(zip(a, b, strict=True))
    groups = record.get("groups", 1)
    if groups == 1:
        return [(a, b)]
    return list(zip(np.split(a, groups, axis=1), np.split(b, groups, axis=1), strict=True))


def dense_update(record: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> np.ndarray:
    """scaling lora_A lora_B of a module as a matrix (d, k), float64; (experts, d, k) for a stack of experts."""
    products = [a @ b for a, b in update_pairs(record, tensors)]
    return np.stack(products) if "experts" in record else np.concatenate(products, axis=1)


def core(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """A small matrix with the singular values of A B that are not 0 by rank: (d, r), (r, k) -> at most (r, r)."""
    with np.errstate(over="ignore", invalid="ignore"):
        return triangle(a) @ triangle(b.T).T


def frobenius(array: np.ndarray) -> float:
    """The Frobenius norm in float64, also where the squares of the numbers would be too large or too small for it."""
    array = array.ravel().astype(np.float64, copy=False)
    largest = float(np.abs(array).max(initial=0.0))
    return largest * float(np.linalg.norm(array / largest)) if 0 < largest < math.inf else largest


def triangle(matrix: np.ndarray) -> np.ndarray:
    """R of the QR decomposition of a matrix, in float64: (m, n) -> at most (n, n).

    Of tall ones block by block of rows, then of the stacked triangles (Demmel et al. 2012, sec. 3): as accurate, and (8192, 64) takes 20 ms
    in place of 36 on one thread; with two on a busy machine, where threads wait for each other at every column, 36 ms in place of 890.
    """
    matrix = np.ascontiguousarray(matrix, np.float64)
    n = matrix.shape[1]
    rows = max(4 * n, 64)
    while len(matrix) >= 2 * rows:
        whole = len(matrix) // rows * rows
        stacked = np.asarray(np.linalg.qr(matrix[:whole].reshape(-1, rows, n), mode="r")).reshape(-1, n)
        matrix = np.concatenate([stacked, matrix[whole:]])
    return np.asarray(np.linalg.qr(matrix, mode="r"))


def product_norm(a: np.ndarray, b: np.ndarray) -> float:
    """The Frobenius norm of A B: (d, r), (r, k) -> number."""
    return frobenius(core(a, b))


def norm(pairs: Sequence[Pair]) -> float:
    """The Frobenius norm of an update in parts."""
    return math.hypot(*(product_norm(a, b) for a, b in pairs))


def singular_values(pairs: Sequence[Pair]) -> np.ndarray:
    """The singular values of an update, falling; those of all parts together where it has several. NaN where it is not finite."""
    values = []
    for a, b in pairs:
        small = core(a, b)
        values.append(np.linalg.svd(small, compute_uv=False) if np.isfinite(small).all() else np.full(min(small.shape), np.nan))
    return np.sort(np.concatenate(values))[::-1]


@dataclass(frozen=True)
class Together:
    """Two updates beside each other: their norms, that of their difference, and the cosine of their angle, None where one is zero."""

    norms: tuple[float, float]
    difference: float
    cosine: float | None


def together(left: Sequence[Pair], right: Sequence[Pair]) -> Together:
    """Compare two updates that have equal parts.

    In the frames of the joined factors [A, A'] and [B; B'] both are small matrices, so two factorings of one update differ by rounding
    only.
    """
    cores = []
    for (a, b), (c, d) in zip(left, right, strict=True):
        rows, columns = triangle(np.hstack([a, c])), triangle(np.vstack([b, d]).T)
        r = a.shape[1]
        with np.errstate(over="ignore", invalid="ignore"):
            cores.append((rows[:, :r] @ columns[:, :r].T, rows[:, r:] @ columns[:, r:].T))
    with np.errstate(over="ignore", invalid="ignore"):
        apart = math.hypot(*(frobenius(x - y) for x, y in cores))
    one, two = (math.hypot(*(frobenius(pair[side]) for pair in cores)) for side in (0, 1))
    if not one or not two or not math.isfinite(one + two):
        return Together((one, two), apart, None)
    cosine = math.fsum(float(np.sum((x / one) * (y / two))) for x, y in cores)
    return Together((one, two), apart, max(-1.0, min(1.0, cosine)))


def nearest_pair(matrix: np.ndarray, rank: int) -> Pair:
    """The pair (d, r), (r, k) whose product is nearest to a matrix (d, k): its largest singular values (Eckart & Young 1936).

    Each singular value goes to both factors in equal parts. Pairs of a higher rank than min(d, k) end in zeros.
    """
    u, s, v = np.linalg.svd(matrix.astype(np.float64), full_matrices=False)
    kept = min(rank, len(s))
    root = np.sqrt(s[:kept])
    a, b = np.zeros((matrix.shape[0], rank)), np.zeros((rank, matrix.shape[1]))
    a[:, :kept], b[:kept] = u[:, :kept] * root, root[:, None] * v[:kept]
    return a, b
