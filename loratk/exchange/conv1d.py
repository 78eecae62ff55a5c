"""The layers of torch whose weight lies input first: Conv1D of transformers, in GPT-2 and its kin. Files do not say it; biases show it."""

from __future__ import annotations

from collections.abc import Mapping

Shape = tuple[int, ...]


def conv1d_modules(shapes: Mapping[str, Shape], biases: Mapping[str, Shape]) -> frozenset[str]:
    """The modules whose two-axis weight lies input first in a file of torch: the Conv1D layers of transformers, as GPT-2 has them.

    `shapes` and `biases`: the shapes of weights and biases by module. A bias has one number for each output, so it tells for a weight that
    is not square; a square one is as those of its name, the last part of its path.
    """
    told: dict[str, bool] = {}
    for module, shape in shapes.items():
        if len(shape) == 2 and shape[0] != shape[1] and module in biases and biases[module] in ((shape[0],), (shape[1],)):
            told[module] = biases[module] == (shape[1],)
    kinds: dict[str, set[bool]] = {}
    for module, last in told.items():
        kinds.setdefault(module.rpartition(".")[2], set()).add(last)
    square = (module for module, shape in shapes.items() if len(shape) == 2 and shape[0] == shape[1] and module in biases)
    like = {module for module in square if kinds.get(module.rpartition(".")[2]) == {True}}
    return frozenset(like | {module for module, last in told.items() if last})
