"""What a merge does to each array, by its plan: which are copied, merged row by row, made as a whole, or given another dtype."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..exchange.transform import cast_array
from ..io.safetensors_header import size_of
from ..kernels.reference.merge import Measures
from .files import Source, plain
from .items import Item, Make
from .merging import Merging
from .rounding import KINDS, Rounding, stream_key
from .targets import Target
from .whole import cast, changed

DTYPE_OF = {kind: dtype for dtype, kind in KINDS.items()}


@dataclass(frozen=True)
class ChangedArray:
    """An array that adapters change: its shape, what safetensors calls its dtype in the result, and what rounding did, once it is made."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    rounding: Rounding | None = None


class Job:
    """The items of a merge. dtype: of floating-point arrays of the result, None for their own. seed: of stochastic rounding, or None."""

    def __init__(self, merging: Merging, source: Source, target: Target, dtype: str | None, seed: int | None) -> None:
        self._merging, self._source, self._target, self._seed = merging, source, target, seed
        self._asked = DTYPE_OF[dtype] if dtype is not None else None
        self._changed = set(merging.changed)
        self.items = [self._item(name) for name in source.infos]

    def changed(self) -> list[ChangedArray]:
        """The arrays that change."""
        return [ChangedArray(item.name, self._source.infos[item.name][1], item.dtype) for item in self.items if item.name in self._changed]

    def size(self) -> int:
        """Bytes of all arrays of the result."""
        return sum(size_of(item.dtype, self._source.infos[item.name][1]) for item in self.items)

    def room(self) -> int:
        """Bytes that the disk must have for it; for a store that is no safetensors what is made anew lies there twice for a while."""
        anew = [] if self._target.safetensors else [item for item in self.items if not item.copied]
        return self.size() + sum(size_of(item.dtype, self._source.infos[item.name][1]) for item in anew)

    def widened(self) -> int:
        """How many arrays in bfloat16 become float32 as the store has no bfloat16."""
        if self._asked is not None:
            return 0
        return sum(item.dtype == "F32" and self._source.infos[item.name][0] == "BF16" for item in self.items)

    def explain(self, name: str) -> list[str]:
        """What is wrong with an array of which numbers are not finite."""
        found: list[str] = []
        kind = KINDS[next(item.dtype for item in self.items if item.name == name)]
        if name in self._changed:
            self._merging.array(name, kind, found)
        else:
            cast_array(name, self._merging.base[name], kind, found)
        return found or [f"{name!r} is not finite after merging; check the adapter"]

    def _item(self, name: str) -> Item:
        dtype = self._source.infos[name][0]
        new = self._new_dtype(dtype)
        if new == dtype and name not in self._changed:
            return Item(name, dtype)
        key = stream_key(self._seed, name) if self._seed is not None and new != "F64" else None
        if name not in self._changed:
            return Item(name, new, make=cast(dtype, new, key), key=key)
        products = self._merging.products(name) if new == dtype else []
        return Item(name, new, products, None if products else self._whole(name, dtype, new, key), key)

    def _new_dtype(self, dtype: str) -> str:
        if dtype not in KINDS:
            return dtype
        return self._asked or ("F32" if dtype == "BF16" and not self._target.safetensors else dtype)

    def _whole(self, name: str, dtype: str, new: str, key: int | None) -> Make:
        def make(stored: np.ndarray) -> tuple[np.ndarray, Measures]:
            own = plain(stored, dtype)
            return changed(own, self._merging.total(name, own), new, key)

        return make
