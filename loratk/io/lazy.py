"""Arrays that are loaded or computed when they are asked for, so that a file larger than memory can be written."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np

Info = tuple[tuple[int, ...], np.dtype]


class LazyArrays(Mapping[str, np.ndarray]):
    """Arrays by name, made when asked for and not kept. `info` tells shape and dtype without making them."""

    def __init__(self, infos: Mapping[str, Info], make: Callable[[str], np.ndarray]) -> None:
        self._infos, self._make = dict(infos), make

    def info(self, name: str) -> Info:
        """The shape and dtype of an array."""
        return self._infos[name]

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._infos:
            raise KeyError(name)
        return self._make(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._infos)

    def __len__(self) -> int:
        return len(self._infos)

    def __contains__(self, name: object) -> bool:
        return name in self._infos


def info(arrays: Mapping[str, np.ndarray], name: str) -> Info:
    """The shape and dtype of one of some arrays, which is not made for that."""
    if isinstance(arrays, LazyArrays):
        return arrays.info(name)
    return arrays[name].shape, arrays[name].dtype
