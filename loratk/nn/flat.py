"""Small parameters side by side in one array, so that an optimiser updates all of them in one launch."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from .parameter import Parameter

LARGEST = 1 << 16  # entries; a parameter beyond that fills a launch of its own, and its gradient is not copied
LARGE = 1 << 17  # bytes of gradients beyond which looking where they lie takes less than copying them


class Flat:
    """Parameters of one backend and dtype, and what an optimiser remembers of them, laid one after the other.

    Each parameter's `data`, and each array in its slot's `arrays`, becomes a view of one long array: `whole`, a parameter
    of all entries, and `arrays`. They stay what they are to everybody else, and may be replaced at any time: `gather` notices.
    """

    def __init__(self, slots: Sequence[Any]) -> None:
        self.slots = slots
        first = slots[0]
        self.whole = Parameter(np.concatenate([slot.parameter.data for slot in slots], axis=None), backend=first.backend)
        self.arrays = {name: np.concatenate([slot.arrays[name] for slot in slots], axis=None) for name in first.arrays}
        self._gradients: np.ndarray | None = None
        self._parts: list[tuple[Any, Parameter, Any, Any]] = []
        stop = 0
        for slot in slots:
            start, stop, shape = stop, stop + slot.parameter.size, slot.parameter.shape
            slot.parameter.data = self.whole.data[start:stop].reshape(shape)
            slot.arrays = {name: array[start:stop].reshape(shape) for name, array in self.arrays.items()}
            self._parts.append((slot, slot.parameter, slot.parameter.data, slot.arrays))

    def gather(self) -> bool:
        """Make the gradient of `whole` of all gradients; False where one is missing or they cannot step as one."""
        gradients, steps = [], self.slots[0].steps
        for slot, parameter, data, arrays in self._parts:
            grad = parameter.grad
            if grad is None or parameter.data is not data or slot.arrays is not arrays or slot.steps != steps or grad.shape != data.shape:
                return False
            gradients.append(grad)
        self.whole.grad = self._gathered(gradients)
        return True

    def _gathered(self, gradients: Sequence[np.ndarray]) -> np.ndarray:
        """All entries of the gradients as one array, which lies in their own memory where they lie side by side, as those of a chain do."""
        if self.whole.data.nbytes >= LARGE and (found := side_by_side(gradients)) is not None:
            return found
        if self._gradients is None:
            self._gradients = np.empty_like(self.whole.data)
        return np.concatenate(gradients, axis=None, out=self._gradients)

    def renewed(self) -> "Flat | None":
        """One of the same parameters where some were replaced by others that fit, None where there is nothing to mend."""
        replaced = any(parameter.data is not data or slot.arrays is not arrays for slot, parameter, data, arrays in self._parts)
        return Flat(self.slots) if replaced and fit(self.slots) else None


def side_by_side(arrays: Sequence[np.ndarray]) -> np.ndarray | None:
    """One array of all entries, without a copy, of arrays that follow each other in the memory of one owner; else None."""
    owner, dtype = arrays[0].base, arrays[0].dtype
    if not isinstance(owner, np.ndarray) or not owner.flags.c_contiguous:
        return None
    start = stop = arrays[0].__array_interface__["data"][0]
    for array in arrays:
        if array.base is not owner or array.dtype != dtype or not array.flags.c_contiguous or array.__array_interface__["data"][0] != stop:
            return None
        stop += array.nbytes
    offset = start - owner.__array_interface__["data"][0]
    return np.ndarray(((stop - start) // dtype.itemsize,), dtype, owner, offset)


def fit(slots: Sequence[Any]) -> bool:
    """Whether the parameters can lie in one array: NumPy arrays of one backend and dtype, all training, their memory of their shape."""
    kinds = {(slot.backend, slot.parameter.backend, str(slot.parameter.dtype)) for slot in slots}
    return len(kinds) == 1 and all(
        isinstance(slot.parameter.data, np.ndarray)
        and not slot.parameter.frozen
        and slot.backend is slot.parameter.backend
        and all(array.shape == slot.parameter.shape for array in slot.arrays.values())
        for slot in slots
    )


def flats(slots: Sequence[Any]) -> list[Flat]:
    """The small parameters of each group, backend and dtype laid together, where there are at least two."""
    kinds: dict[Any, list[Any]] = {}
    for slot in slots:
        if slot.parameter.size <= LARGEST:
            kinds.setdefault((id(slot.options), slot.parameter.backend, slot.parameter.dtype), []).append(slot)
    return [Flat(kind) for kind in kinds.values() if len(kind) > 1 and fit(kind)]
