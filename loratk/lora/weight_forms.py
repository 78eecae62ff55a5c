"""A layer's weight in the forms that its passes ask for."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..autograd import Tensor, ops
from ..nn import Module
from .layer_types import LayerType

if TYPE_CHECKING:
    from .layer_adapter import LayerAdapter

MOST_MOVED = 4  # weights less what inits take off, each as large as the weight, that a layer keeps


class WeightForms:
    """Handles of a weight, of its column blocks, and of it less what inits take off, kept while what they were made of stays the same."""

    def __init__(self) -> None:
        self._handles: dict[str, tuple[Any, Any]] = {}
        self._moved: dict[tuple[Any, ...], tuple[tuple[Any, ...], Any]] = {}

    def __reduce__(self) -> tuple[type["WeightForms"], tuple[()]]:
        return WeightForms, ()  # copies and pickles make their own

    def own(self, layer_type: LayerType[Any], base: Module, active: Sequence[tuple["LayerAdapter", float]]) -> Any:
        """The weight as `LayerType.apply` takes it, less what the inits of the active adapters take off it, if it is frozen."""
        weight = layer_type.weight(base)
        moved = [(block, part, w) for adapter, w in active for block, part in adapter.blocks().items() if part.first() is not None]
        if not moved or weight.requires_grad:
            return layer_type.own_matrix(base)
        parts = [(vars(part), part.scaling * w) for _, part, w in moved]
        made_of = (weight.data, *(x for held, factor in parts for x in (held["initial_A"].data, held["initial_B"].data, factor)))
        key = tuple(x if isinstance(x, float) else id(x) for x in made_of)
        if key not in self._moved:
            matrix, ranges = np.array(layer_type.read(base)), layer_type.blocks(base)
            for block, part, w in moved:
                start, stop = ranges[block]
                matrix[:, start:stop] -= matrix.dtype.type(w) * part.offset()
            found = made_of, layer_type.hold(base, matrix)  # the arrays are held, so that their ids stay theirs
            self._moved = dict(list(self._moved.items())[1 - MOST_MOVED :]) | {key: found}  # a new dict: other threads may be reading
            return found[1]
        return self._moved[key][1]

    def handle(self, layer_type: LayerType[Any], base: Module, block: str) -> Any:
        """A handle of the weight's columns of a block, for the kernels."""
        weight, ranges = layer_type.weight(base), layer_type.blocks(base)
        if weight.frozen and len(ranges) == 1:
            return weight.handle()
        data, handle = self._handles.get(block, (None, None))
        if data is not weight.data or not weight.frozen:
            K, (start, stop) = weight.backend, ranges[block]
            handle = K.freeze_weight(K.asarray(np.ascontiguousarray(layer_type.read(base)[:, start:stop])))
            self._handles[block] = weight.data, handle
        return handle


def block_matrix(layer_type: LayerType[Any], base: Module, block: str) -> Tensor:
    """The weight's columns of a block as a tensor (d, k)."""
    weight, (start, stop) = layer_type.weight(base), layer_type.blocks(base)[block]
    matrix = weight.reshape(*layer_type.shape(base)) if weight.requires_grad or weight.ndim != 2 else weight
    return matrix if (start, stop) == (0, matrix.shape[1]) else matrix[:, start:stop]


def without_first(
    layer_type: LayerType[Any], base: Module, x: Tensor, product: Tensor, active: Sequence[tuple["LayerAdapter", float]]
) -> Tensor:
    """A product with a weight that trains, less what the inits of the active adapters take off it."""
    ranges = layer_type.blocks(base)
    pieces = [product[..., start:stop] for start, stop in ranges.values()] if len(ranges) > 1 else [product]
    for layer_adapter, weight in active:
        for place, block in enumerate(ranges):
            part = layer_adapter.block(block)
            if part is not None and (first := part.first()) is not None:
                pieces[place] = pieces[place] - layer_type.apply(base, x, first[0]) @ (first[1] * (part.scaling * weight))
    return pieces[0] if len(pieces) == 1 else ops.concat(pieces, axis=-1)
