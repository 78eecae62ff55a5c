"""One layer's factors as Keras keeps them, to and from a module's record, lora_A (d, r) and lora_B (r, k)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from loratk.errors import FormatError
from loratk.io.store import bomb_fault

from .einsum import axes_of, from_linear, to_linear
from .layers import Layer
from .layout import Pair

Module = tuple[dict[str, Any], np.ndarray, np.ndarray]
_CONV_AXES = {"conv1d": 3, "conv2d": 4, "conv3d": 5}
_SMALLEST = 1e-6
"""Singular values below this share of the largest are what float32 rounding leaves of a zero."""


def read_pair(pair: Pair, layer: Layer, three_axes: str) -> Module:
    """The record, lora_A and lora_B of a layer. Raises FormatError where what is known of the layer does not fit the factors.

    Factors say how many axes a kernel has, not of what layer: if nobody else does, three are `three_axes`, four and five a convolution.
    """
    a, b, _ = pair
    kernel = (*a.shape[:-1], b.shape[1])
    kind = layer.layer_type or ("einsum" if layer.equation and a.ndim > 2 else None)
    kind = kind or kind_of(a.ndim, three_axes)
    fits = len(kernel) == _CONV_AXES[kind] if kind in _CONV_AXES else kind == "einsum" or len(kernel) == 2
    if not fits:
        raise FormatError(f"a layer of the type {kind} has no kernel of {len(kernel)} axes, {list(kernel)}")
    if layer.kernel is not None and layer.kernel != kernel:
        raise FormatError(f"its kernel should be {list(layer.kernel)}, and the factors are for {list(kernel)}")
    if layer.equation and len(kernel) > 2 and axes_of(layer.equation).count != len(kernel):
        raise FormatError(f"the equation {layer.equation!r} does not fit its kernel {list(kernel)}")
    kind = "linear" if len(kernel) == 2 else kind
    lora_a = np.ascontiguousarray(a.reshape(-1, a.shape[-1]))
    record: dict[str, Any] = {"method": "lora", "layer_type": kind, "shape": [len(lora_a), kernel[-1]], "rank": a.shape[-1]}
    if kind in _CONV_AXES:
        record["kernel"] = list(kernel[:-2])
    if kind == "einsum":
        record |= {"kernel": list(kernel)} | ({"equation": layer.equation} if layer.equation else {})
    return record, lora_a, b


def kind_of(axes: int, three_axes: str) -> str:
    """What a kernel of so many axes is taken for where nobody says it."""
    return {2: "linear", 3: three_axes, 4: "conv2d", 5: "conv3d"}.get(axes, "einsum")


def linear_of(record: Mapping[str, Any], lora_a: np.ndarray, lora_b: np.ndarray, equation: str) -> Module:
    """An einsum module as the linear layer that computes the same: rank n r, where a head of n has the factors of its own. Exact."""
    axes = axes_of(equation)
    kernel = record["kernel"]
    if axes.count != len(kernel):
        raise FormatError(f"the equation {equation!r} does not fit its kernel {kernel}")
    d, k = axes.sizes(kernel)
    rank = lora_a.size // d  # of all heads together
    if (fault := bomb_fault((d + k) * rank * lora_b.itemsize, lora_a.nbytes + lora_b.nbytes)) is not None:
        raise FormatError(f"as a linear layer its kernel {kernel} {fault}")
    lora_a, lora_b = to_linear(axes, lora_a.reshape(*kernel[:-1], -1), lora_b)
    new = {key: value for key, value in record.items() if key != "kernel"}
    new |= {"layer_type": "linear", "shape": [len(lora_a), lora_b.shape[1]], "rank": len(lora_b)}
    new |= {"equation": equation, "keras_kernel": list(kernel)}
    return new, lora_a, lora_b


def gathered(record: dict[str, Any], lora_b: np.ndarray, groups: int) -> np.ndarray:
    """lora_B (r / groups, k) of a grouped convolution out of Keras's (r, k). Raises FormatError where it uses more than its blocks."""
    rank, k = lora_b.shape
    if rank % groups or k % groups:
        raise FormatError(f"it has {groups} groups, which do not divide rank {rank} and {k} channels")
    blocks = lora_b.reshape(groups, rank // groups, groups, k // groups)
    own = blocks[range(groups), :, range(groups)]
    if np.count_nonzero(lora_b) != np.count_nonzero(own):
        raise FormatError(f"it has {groups} groups, but lora_kernel_b connects them with each other")
    record["groups"] = groups
    return np.ascontiguousarray(own.swapaxes(0, 1).reshape(rank // groups, k))


def scattered(lora_b: np.ndarray, groups: int) -> np.ndarray:
    """lora_B (r / groups, k) of a grouped convolution -> (r, k) with zeros between the groups. Exact."""
    inner, k = lora_b.shape
    blocks = np.zeros((groups, inner, groups, k // groups), lora_b.dtype)
    blocks[range(groups), :, range(groups)] = lora_b.reshape(inner, groups, -1).swapaxes(0, 1)
    return blocks.reshape(groups * inner, k)


def kernel_axes(record: Mapping[str, Any], rows: int, layer: Layer) -> tuple[int, ...]:
    """The leading axes of a module's lora_kernel_a. Raises FormatError where a convolution or einsum lacks its kernel."""
    kind, kernel = str(record.get("layer_type", "linear")), record.get("kernel")
    if not (kind.startswith("conv") or kind == "einsum"):
        return (rows,)
    if kernel is None and layer.kernel:
        kernel = layer.kernel if kind == "einsum" else layer.kernel[:-2]
    inner = None if kernel is None else list(kernel[:-1] if kind == "einsum" else kernel)
    if not inner or rows % math.prod(inner) or (kind == "einsum" and rows != math.prod(inner)):
        raise FormatError(f"the shape of its kernel must be known and fit {rows} rows, found {kernel!r}; a map can give it (docs/keras.md)")
    return tuple(inner) if kind == "einsum" else (*inner, rows // math.prod(inner))


def einsum_of(lora_a: np.ndarray, lora_b: np.ndarray, equation: str, kernel: Sequence[int]) -> tuple[np.ndarray, np.ndarray, Any]:
    """A linear module's factors for an einsum kernel: A (*axes, r), B (r, h), and their singular values or None, as in `from_linear`.

    Of factors by singular values those are left out that rounding made. Raises FormatError where the shapes do not fit.
    """
    axes = axes_of(equation)
    if axes.count != len(kernel) or axes.sizes(kernel) != (len(lora_a), lora_b.shape[1]):
        raise FormatError(f"a weight ({len(lora_a)}, {lora_b.shape[1]}) does not fit the kernel {list(kernel)} of {equation!r}")
    try:
        with np.errstate(over="ignore", invalid="ignore"):
            a, b, values = from_linear(axes, kernel, lora_a, lora_b)
    except np.linalg.LinAlgError as error:  # products beyond what float64 holds
        raise FormatError(f"its nearest factors for the kernel {list(kernel)} cannot be computed: {error}") from error
    if values is None:
        return a, b, None
    rank = max(int(np.count_nonzero(values > _SMALLEST * values[0])), 1)
    return a[..., :rank], b[:rank], values
