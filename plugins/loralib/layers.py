"""The factors of loralib's layers as loratk's: plain ones, those of a fused projection, and those of a convolution."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from loratk.errors import FormatError
from loratk.exchange.base import input_first
from loratk.exchange.factors import nearest_pair
from loratk.exchange.torch_layout import from_torch

Module = tuple[dict[str, Any], dict[str, np.ndarray]]


def merged_pair(a: np.ndarray, b: np.ndarray, enabled: tuple[bool, ...]) -> tuple[np.ndarray, np.ndarray]:
    """MergedLinear's factors (r m, d), (k m / n, r), m of n parts enabled, as one pair (r m, d), (k, r m). Exact: numbers only move.

    Each part has the rows of its own block, and zeros in all others. Raises FormatError where the two do not fit the parts.
    """
    parts = [at for at, on in enumerate(enabled) if on]
    rank = b.shape[1] if a.ndim == b.ndim == 2 else 0
    if not rank or len(a) != rank * len(parts) or len(b) % len(parts):
        raise FormatError(f"lora_A {a.shape} and lora_B {b.shape} are not those of a projection with {len(parts)} parts enabled")
    size = len(b) // len(parts)
    spread = np.zeros((size * len(enabled), len(a)), b.dtype)
    for at, part in enumerate(parts):
        spread[part * size : (part + 1) * size, at * rank : (at + 1) * rank] = b[at * size : (at + 1) * size]
    return a, spread


def linear(
    a: np.ndarray, b: np.ndarray, alpha: float, *, table: bool = False, enabled: tuple[bool, ...] | None = None, root: bool = False
) -> Module:
    """A pair as loralib keeps it -> record and factors. The scaling is alpha / r, with `root` alpha / sqrt(r).

    Of a fused projection r is the rank of one part; the record has the rank of all and the alpha that goes with it.
    """
    parts = 1
    if enabled is not None:
        a, b = merged_pair(a, b, enabled)
        parts = sum(enabled)
    facts, lora_a, lora_b = from_torch(a, b, table=table)
    rank = facts["rank"] // parts
    scaling = alpha / math.sqrt(rank) if root else alpha / rank
    return facts | {"alpha": alpha * parts, "scaling": scaling}, {"lora_A": lora_a, "lora_B": lora_b}


@np.errstate(over="ignore", invalid="ignore")  # what is not finite then is a fault that the caller tells
def conv_update(a: np.ndarray, b: np.ndarray, alpha: float, size: int, groups: int) -> Module:
    """ConvLoRA's factors (r s, c s), (k s / g, r s), s the size of the window -> the change of the weight they make.

    Its product is laid over the weight (k, c / g, s, s) in the order of memory, which mixes window and channels: no pair of factors of
    that rank makes it, so it stays whole, as torch has it. float32, or float64 if they are. Raises FormatError where they do not fit.
    """
    if a.ndim != 2 or b.ndim != 2:
        raise FormatError(f"lora_A and lora_B must be matrices, found {a.shape} and {b.shape}")
    rank, rows, columns = len(a) // size, len(b) * groups, a.shape[1]
    if len(a) != b.shape[1] or len(a) % size or rows % size or columns % (size * groups) or (rows // size) % groups or not rank:
        raise FormatError(f"lora_A {a.shape} and lora_B {b.shape} are not those of a convolution {size} x {size} in {groups} groups")
    shape = (rows // size, columns // (size * groups), size, size)
    change = (b.astype(np.float64) @ a.astype(np.float64)).reshape(shape) * (alpha / rank)
    record = {"layer_type": "conv2d", "shape": [shape[1] * size * size, shape[0]], "kernel": [size, size]}
    record |= {"groups": groups} if groups > 1 else {}
    return record, {"weight": change.astype(np.result_type(a.dtype, b.dtype, np.float32))}


def conv_factors(record: dict[str, Any], change: np.ndarray, rank: int) -> tuple[Module, float]:
    """The factors of a rank nearest to a convolution's change, by singular values, group by group; and the share that they leave out."""
    groups = record.get("groups", 1)
    each = max(rank // groups, 1)
    matrix = np.ascontiguousarray(input_first(change)).reshape(-1, change.shape[0])
    pairs = [nearest_pair(block, each) for block in np.split(matrix.astype(np.float64), groups, axis=1)]
    lost = np.linalg.norm(matrix - np.hstack([a @ b for a, b in pairs]))
    whole = np.linalg.norm(matrix)
    factors = {"lora_A": np.hstack([a for a, _ in pairs]), "lora_B": np.hstack([b for _, b in pairs])}
    new = record | {"rank": each * groups, "alpha": float(each * groups), "scaling": 1.0}
    return (new, {key: array.astype(change.dtype) for key, array in factors.items()}), float(lost / whole) if whole else 0.0
