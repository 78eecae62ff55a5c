"""Folding the adapters of a whole model into its base."""

from collections.abc import Mapping

import numpy as np

from ..errors import StateError, faults
from ..nn import Module
from .layer import LoraLayer
from .tree import ROOT, own, walk


def _of(layer: LoraLayer, weights: Mapping[str, float]) -> dict[str, float]:
    """The adapters and weights that concern a layer."""
    return {name: weight for name, weight in weights.items() if name in layer.names()}


def merge_layers(base: Module, layers: Mapping[str, LoraLayer], weights: Mapping[str, float]) -> None:
    """Merge adapters into every layer, or, if that fails for one, into none.

    Raises StateError for a parameter that other modules use too: they would change with it.
    """
    found = []
    for name, layer in layers.items():
        if _of(layer, weights):
            inside = {id(module) for _, module in layer.base.modules()}
            targets = {id(parameter) for parameter in layer.targets().values()}
            others = [(part, module) for part, module, _ in walk(base) if id(module) not in inside]
            found += [f"{name!r} shares it with {part or ROOT!r}" for part, module in others for _, p in own(module) if id(p) in targets]
    if found:
        raise StateError(faults("Cannot merge into a weight that serves two modules; use merged_state(), which parts them:", found))
    done = []
    try:
        for layer in layers.values():
            layer.merge(_of(layer, weights))
            done.append(layer)
    except BaseException:
        for layer in done:
            layer.unmerge()
        raise


def folded_arrays(base: Module, layers: Mapping[str, LoraLayer], weights: Mapping[str, float]) -> dict[str, np.ndarray]:
    """The arrays that merging would put in place of the base's, by the names these have without adapters; nothing changes."""
    state: dict[str, np.ndarray] = {}
    for layer in layers.values():
        if mine := _of(layer, weights):
            arrays = layer.merged_arrays(mine)
            folded = {id(parameter): arrays[key] for key, parameter in layer.targets().items()}
            inside = {id(module) for _, module in layer.base.modules()}
            for name, module, _ in walk(base):
                if id(module) in inside:
                    state |= {f"{name}.{key}" if name else key: folded[id(p)] for key, p in own(module) if id(p) in folded}
    return state
