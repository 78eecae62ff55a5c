"""Adapters of other tools made to fit a model: its names, its column blocks, its biases and dtypes, exactly or not at all."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from math import isclose
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import FormatError, UnknownNameError
from ..exchange import AdapterState, config_for
from ..exchange.transform import new_name, rebuilt
from .foreign import trainable
from .targets import Candidate, find_candidates
from .tree import ROOT, modules

if TYPE_CHECKING:
    from .model import LoraModel


class ModelBase:
    """A model's base as formats see the weights an adapter is for, without its adapters.

    `names` are new module paths, as in `exchange.transform.rename`: with `outward` from the model's to the file's, else the other way.
    """

    path, order = "this model", "input-first"

    def __init__(self, model: "LoraModel", names: Mapping[str, str] | None = None, *, outward: bool = False) -> None:
        arrays = model.base_state() if model.merged else model.base_parameters()
        self._arrays = {name if "." in name else f"{ROOT}.{name}": array for name, array in arrays.items()}
        self._names = names or {}
        self._own: dict[str, str] = {}
        if outward:
            self._own = {new_name(name, self._names)[1]: name for name in (key.rpartition(".")[0] for key in self._arrays)}

    def modules(self) -> list[str]:
        """The dotted path of every module that has a weight, by the file's names."""
        own = [name.rpartition(".")[0] for name in self._arrays if name.rpartition(".")[2] == "weight"]
        theirs = {name: new for new, name in self._own.items()}
        return [theirs.get(name, name) for name in own]

    def shape(self, module: str) -> tuple[int, ...]:
        """The shape of a module's weight."""
        return self._array(module, "weight").shape

    def weight(self, module: str) -> np.ndarray:
        """A module's weight as it acts: (d, k)."""
        weight = self._array(module, "weight")
        if weight.ndim < 2:
            raise FormatError(f"the weight of {module!r} in this model is no matrix, but {weight.shape}")
        return weight.reshape(-1, weight.shape[-1])

    def bias(self, module: str) -> np.ndarray | None:
        """A module's bias (k,), or None."""
        try:
            return self._array(module, "bias")
        except UnknownNameError:
            return None

    def _array(self, module: str, kind: str) -> np.ndarray:
        own = self._own.get(module, module)
        if f"{own}.{kind}" not in self._arrays and not self._own:
            own = new_name(module, self._names)[1]
        if f"{own}.{kind}" not in self._arrays:
            raise UnknownNameError(f"this model has no {kind} in a module {own!r}")
        array = self._arrays[f"{own}.{kind}"]
        return array if isinstance(array, np.ndarray) else array.numpy()


def fitted(model: "LoraModel", state: AdapterState) -> AdapterState:
    """A state from elsewhere as this model would hold it: with a config for its modules, and tensors of the model's names and dtypes.

    LoHa, LoKr, IA3 and VeRA become the methods that train here, a lora_bias the change of the bias that it makes, an adapter of a fused
    projection one for each of its blocks; numbers are widened where the model's dtype holds them all. Raises ConfigError for what no
    LoraConfig can say, FormatError.
    """
    candidates = find_candidates(modules(model.base), model.registry)
    layers = {candidate.name: candidate for candidate in candidates}
    state = _in_blocks(_with_changes(trainable(state, layers)), layers)
    names = {candidate.name for candidate in candidates} | {c.block_name(block) for c in candidates for block in c.blocks}
    dtypes = {parameter.dtype for parameter in model.base_parameters().values() if parameter.dtype.kind == "f"}
    tensors = {name: _widened(array, dtypes) for name, array in state.tensors.items()}
    return replace(state, tensors=tensors, config=config_for(state, among=names))


def with_biases(state: AdapterState, mine: Mapping[str, Any]) -> AdapterState:
    """A state with no change, zeros, for the biases that train under its config and that it does not have."""
    names = [name for name in mine.keys() - state.tensors.keys() if name.rpartition(".")[2] == "bias"]
    return replace(state, tensors=state.tensors | {name: np.zeros(mine[name].shape, mine[name].dtype) for name in names})


def _with_changes(state: AdapterState) -> AdapterState:
    """The scaled biases as plain changes."""
    parameters = state.parameters()
    if not any("lora_bias" in held for held in parameters.values()):
        return state
    changed = {}
    for module, held in parameters.items():
        if "lora_bias" in held:
            scaled = held["lora_bias"].astype(np.float64) * state.modules[module]["scaling"]
            total = scaled + held.get("bias", 0.0)
            held = {name: array for name, array in held.items() if name != "lora_bias"}
            held["bias"] = total.astype(np.result_type(held["lora_B"].dtype, np.float32))
        changed[module] = state.modules[module], held
    return rebuilt(state, changed)


def _in_blocks(state: AdapterState, candidates: Mapping[str, Candidate]) -> AdapterState:
    """Adapters of whole fused projections as those of their column blocks: the same lora_A for each, and its columns of the rest."""
    fused = [module for module in state.modules if module in candidates and set(candidates[module].blocks) != {""}]
    if not fused:
        return state
    split: dict[str, tuple[Mapping[str, Any], dict[str, np.ndarray]]] = {}
    for module, held in state.parameters().items():
        record = state.modules[module]
        if module not in fused or "lora_A" not in held:
            split[module] = record, held
            continue
        if "bias" in held:
            split[module] = {"method": "bias"}, {"bias": held["bias"]}
        for block, (start, stop) in candidates[module].blocks.items():
            columns = {name: np.ascontiguousarray(array[..., start:stop]) for name, array in held.items() if name != "bias"}
            part = {**record, "shape": [record["shape"][0], stop - start], "columns": [start, stop]}
            whole = {name: held[name] for name in ("lora_A", "initial_A") if name in held}
            split[candidates[module].block_name(block)] = part, columns | whole
    return rebuilt(state, split)


def _widened(array: np.ndarray, dtypes: set[np.dtype[Any]]) -> np.ndarray:
    """An array in the model's one dtype, if that holds every number of the array's."""
    wanted = next(iter(dtypes)) if len(dtypes) == 1 else array.dtype
    return array.astype(wanted) if array.dtype.kind == "f" and np.can_cast(array.dtype, wanted, "safe") else array


def record_faults(model: "LoraModel", want: Mapping[str, Mapping[str, Any]], got: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Where the records of a file from elsewhere say otherwise than the model that took its config."""
    linear = {layer_type.name for layer_type in model.registry.layer_types.values() if layer_type.linear}
    for name in sorted(want.keys() & got.keys()):
        mine, theirs = want[name], got[name]
        for key in ("method", "shape", "rank", "kernel", "groups"):
            if key in mine and key in theirs and mine[key] != theirs[key]:
                yield f"{name!r}: the file has {key} {theirs[key]!r}, the model {mine[key]!r}"
        if "scaling" in mine and "scaling" in theirs and not isclose(mine["scaling"], theirs["scaling"], rel_tol=1e-9):
            yield f"{name!r}: the file's scaling is {theirs['scaling']!r}, its config makes it {mine['scaling']!r}"
        kinds = ["linear" if kind in linear else kind for kind in (theirs.get("layer_type"), mine.get("layer_type"))]
        if None not in kinds and kinds[0] != kinds[1]:
            yield f"{name!r} is of the layer type {kinds[0]!r} in the file, and {kinds[1]!r} in the model"
