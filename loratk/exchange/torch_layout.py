"""Factors as torch's tools keep them, output first, to and from loratk's, input first. Exact: axes are moved, numbers are not touched.

layer       lora_A there                lora_B there             here
linear      (r, d)                      (k, r)                   (d, r), (r, k)
conv        (r, channels / g, *window)  (k, r / g, 1, ..., 1)    (prod(window) channels / g, r), (r / g, k)
embedding   (r, v)                      (k, r)                   (v, r), (r, k)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..errors import FormatError

Factors = tuple[dict[str, Any], np.ndarray, np.ndarray]


def from_torch(a: np.ndarray, b: np.ndarray, *, table: bool = False) -> Factors:
    """A pair as torch keeps it -> what the record must say of it (layer_type, shape, rank, kernel, groups), lora_A and lora_B.

    Two axes are a linear layer, or with `table` an embedding; three to five are a convolution of one to three. Raises FormatError where
    the two do not fit each other.
    """
    if a.ndim != b.ndim or not 2 <= a.ndim <= 5:
        raise FormatError(f"the factors must both have 2 axes (linear) or 3 to 5 (convolution), found {a.shape} and {b.shape}")
    rank, k = a.shape[0], b.shape[0]
    if a.ndim == 2:
        if b.shape[1] != rank:
            raise FormatError(f"the factors disagree about the rank: {a.shape} has {rank}, {b.shape} has {b.shape[1]}")
        facts = {"layer_type": "embedding" if table else "linear", "shape": [a.shape[1], k], "rank": rank}
        return facts, np.ascontiguousarray(a.T), np.ascontiguousarray(b.T)
    inner, window = b.shape[1], a.shape[2:]
    if any(size != 1 for size in b.shape[2:]):
        raise FormatError(f"the second factor of a convolution must have a window of 1, found {b.shape}")
    if not inner or rank % inner or k % (rank // inner):
        raise FormatError(f"the factors disagree about the rank: {a.shape} has {rank}, {b.shape} has {inner} for each group")
    lora_a = np.ascontiguousarray(a.transpose(*range(2, a.ndim), 1, 0)).reshape(-1, rank)
    facts = {"layer_type": f"conv{len(window)}d", "shape": [len(lora_a), k], "rank": rank, "kernel": list(window)}
    if rank != inner:
        facts["groups"] = rank // inner
    return facts, lora_a, np.ascontiguousarray(b.reshape(k, inner).T)


def to_torch(record: Mapping[str, Any], lora_a: np.ndarray, lora_b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A module's factors -> the pair as torch keeps it; the inverse of `from_torch`.

    Raises FormatError for stacks of experts and einsum kernels, which torch has no layer for, and for a convolution without its window.
    """
    layer_type = record.get("layer_type", "linear")
    if "experts" in record or layer_type == "einsum":
        raise FormatError(f"a {'stack of experts' if 'experts' in record else 'kernel of more axes (EinsumDense)'} is no layer of torch")
    if not layer_type.startswith("conv"):
        return np.ascontiguousarray(lora_a.T), np.ascontiguousarray(lora_b.T)
    window = record.get("kernel")
    if not window or len(lora_a) % math.prod(window):
        raise FormatError(f"the record of a convolution must have its window (kernel) that divides {len(lora_a)} rows, found {window!r}")
    inner, k = lora_b.shape
    a = lora_a.reshape(*window, -1, lora_a.shape[1])
    return np.ascontiguousarray(a.transpose(a.ndim - 1, a.ndim - 2, *range(a.ndim - 2))), np.ascontiguousarray(
        lora_b.T.reshape(k, inner, *[1] * len(window))
    )


def magnitude_to_torch(record: Mapping[str, Any], magnitude: np.ndarray) -> np.ndarray:
    """DoRA's magnitude (k,) as torch's tools keep it: (k,), of a convolution (1, k, 1, ..., 1)."""
    window = record.get("kernel") if str(record.get("layer_type", "")).startswith("conv") else None
    return magnitude.reshape(1, -1, *[1] * len(window)) if window else magnitude
