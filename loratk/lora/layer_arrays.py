"""What merging puts in place of a layer's arrays."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from .layer import LoraLayer
    from .layer_adapter import LayerAdapter


def layer_arrays(layer: "LoraLayer", weights: Mapping[str, float]) -> dict[str, np.ndarray]:
    """The base's `weight`, in its own shape, and its `bias`, if it has one, with adapters folded in, as new arrays."""
    bias, found = layer.base_bias(), {}
    chosen = [(layer.adapter(name), weight) for name, weight in weights.items()]
    if layer.layer_type is not None:
        matrix, ranges = layer.layer_type.read(layer.base), layer.layer_type.blocks(layer.base)
        out = np.array(matrix)
        for adapter, weight in chosen:
            for block, part in adapter.blocks().items():
                start, stop = ranges[block]
                out[:, start:stop] += out.dtype.type(weight) * part.delta(np.ascontiguousarray(matrix[:, start:stop]))
        found["weight"] = out.reshape(layer.layer_type.weight(layer.base).shape)
    if bias is not None:
        changes = [weight * adapter.bias.numpy() for adapter, weight in chosen if adapter.bias is not None]
        changes += [weight * change for adapter, weight in chosen for change in _bias_changes(layer, adapter, bias.numpy())]
        found["bias"] = sum(changes, np.array(bias.numpy())).astype(bias.dtype)
    return found


def _bias_changes(layer: "LoraLayer", adapter: "LayerAdapter", bias: np.ndarray) -> Iterator[np.ndarray]:
    """What the methods of an adapter's blocks add to the base's bias (k,)."""
    for block, part in adapter.blocks().items():
        assert layer.layer_type is not None
        start, stop = layer.layer_type.blocks(layer.base)[block]
        if (change := part.bias_delta(bias[start:stop])) is not None:
            whole = np.zeros_like(bias)
            whole[start:stop] = change
            yield whole
