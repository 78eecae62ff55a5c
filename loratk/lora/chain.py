"""Chains of linear layers out of pretrained arrays."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ..errors import ConfigError, faults
from ..nn import Linear


def pretrained_layers(weights: Sequence[Any], biases: Sequence[Any | None] | None) -> list[Linear]:
    """Linear layers with copies of weights (d, k) and biases (k,). Raises ConfigError, which lists every fault."""
    arrays = [np.asarray(weight) for weight in weights]
    biases = [None] * len(arrays) if biases is None else [None if bias is None else np.asarray(bias) for bias in biases]
    if found := list(_faults(arrays, biases)):
        raise ConfigError(faults("These pretrained arrays do not make a network:", found))
    return [Linear.from_arrays(weight, bias) for weight, bias in zip(arrays, biases, strict=True)]


def _faults(weights: Sequence[np.ndarray], biases: Sequence[np.ndarray | None]) -> Iterator[str]:
    """What is wrong with weights (d, k) and biases (k,) or None as a chain of layers, a line each."""
    if not weights:
        yield "there is no weight"
    if len(biases) != len(weights):
        yield f"there are {len(weights)} weights and {len(biases)} biases; give None for a layer without bias"
    for i, weight in enumerate(weights):
        if weight.ndim != 2 or not weight.size:
            yield f"weight {i} must be a matrix (d, k), found shape {weight.shape}"
        elif i and weights[i - 1].ndim == 2 and weight.shape[0] != weights[i - 1].shape[1]:
            before = weights[i - 1]
            yield f"weight {i} {weight.shape} takes {weight.shape[0]} inputs, weight {i - 1} {before.shape} has {before.shape[1]} outputs"
        if weight.dtype not in (np.float32, np.float64):
            yield f"weight {i} must be float32 or float64, found {weight.dtype}"
        elif weight.dtype != weights[0].dtype:
            yield f"weight {i} is {weight.dtype}, weight 0 is {weights[0].dtype}; convert one with astype"
        bias = biases[i] if i < len(biases) else None
        if bias is not None and weight.ndim == 2 and bias.shape != weight.shape[1:]:
            yield f"bias {i} must have shape ({weight.shape[1]},), found {bias.shape}"
        if bias is not None and bias.dtype != weight.dtype:
            yield f"bias {i} must have its weight's dtype {weight.dtype}, found {bias.dtype}"
