"""What a module of an adapter adds to its weight, whatever its method: by factors where it has some, else as the difference, a matrix."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..errors import AnomalyError, ConfigError, FormatError, LoratkError, choices
from ..exchange import AdapterState, Base
from ..exchange.bake import dora_update
from ..exchange.base import EMBEDDINGS, input_first
from ..exchange.factors import Pair, update_pairs
from ..exchange.joining import joined
from ..exchange.methods_layout import is_own
from ..exchange.others import KNOWN, Other
from ..exchange.plain import as_lora, as_other, is_shared, shared_of
from ..exchange.plain import input_first as to_input_first
from ..kernels import get_backend
from ..plugins import Registry

Record = Mapping[str, Any]
Tensors = Mapping[str, np.ndarray]
WHOLE = ("full", "diff")
BIASES = frozenset({"bias", "lora_bias"})
NEEDS_BASE = "it depends on the base's weight; give the base (--base)"


class Exact:
    """The updates of one adapter, a module at a time, in float64. Each function raises LoratkError for what is not known."""

    def __init__(self, state: AdapterState, registry: Registry, base: Base | None = None) -> None:
        self.state, self._registry, self._base = state, registry, base
        self.held, self._shared = state.parameters(), shared_of(state)
        self._in_base = frozenset(base.modules()) if base is not None else frozenset[str]()
        self.modules = dict.fromkeys(name for name, held in self.held.items() if not is_shared(state.modules[name], held))
        """Those that are updates: VeRA's shared matrices are none."""

    def module(self, module: str) -> tuple[Record, Tensors]:
        """The record and the parameters of a module, with first factors and gains in the factors (`exchange.joining`)."""
        return joined(self.state.modules[module], self.held[module])

    def update(self, module: str, *, d: int = 0) -> tuple[Record, list[Pair] | np.ndarray]:
        """What a module adds to its weight: pairs for parts that share no entry, as `update_pairs`, or a matrix (d, k), or (experts, d, k).

        Before it a record that says how the weight lies. `d`: the inputs, for a method (VeRA) that may not tell them.
        """
        record, held = self.module(module)
        held = {key: array for key, array in held.items() if key not in BIASES}
        method = record["method"]
        if not held:
            raise ConfigError("it changes a bias alone, no weight")
        if method == "lora" and held.keys() == {"lora_A", "lora_B"}:
            return record, _finite(update_pairs(record, held))
        if self.elsewhere(module):
            return self._other(module, record, held, d or self._inputs())
        return record, _finite(self._matrix(module, record, held))

    def norm(self, module: str) -> float | None:
        """The Frobenius norm of an update of a registered method that tells it from its parameters alone; None for others."""
        record, held = self.module(module)
        held = {key: array for key, array in held.items() if key not in BIASES}
        method, shape = self._registry.methods.get(record["method"]), tuple(record.get("shape", ()))
        if method is None or len(shape) != 2 or any(method.parameter_faults(held, *shape, record.get("rank", 0))):
            return None  # nor where a file holds other parameters, another tool's or wrong ones
        return method.norm(held, float(record.get("scaling", 1.0)))

    def bias(self, module: str) -> np.ndarray | None:
        """What its method adds to the bias in proportion to it, as IA3 does; None for nothing. Needs the base."""
        record, held = self.state.modules[module], self.held[module]
        if not self.elsewhere(module) or module not in self._in_base:
            return None
        return as_other(record, held, module, self._base, shared=self._shared).bias()

    def elsewhere(self, module: str) -> bool:
        """Whether a module is of a method that other tools train, with the parameters that they keep of it."""
        record, held = self.state.modules[module], self.held[module]
        if is_own(record, held):  # loratk's own parameters, of which `as_other` makes theirs
            return True
        if record["method"] not in KNOWN or record["method"] not in self._registry.methods:
            return record["method"] in KNOWN
        try:
            Other(record, held).check_names()
        except FormatError:  # loratk's own method of that name has parameters of its own
            return False
        return True

    def needs_base(self, module: str) -> bool:
        """Whether what a module adds depends on the base's weight."""
        method = self.state.modules[module]["method"]
        if self.elsewhere(module):
            return method in ("ia3", "glora", "dora_in") or "dora_scale" in self.held[module]
        registered = self._registry.methods.get(method)
        return method == "full" or "magnitude" in self.held[module] or (registered is not None and not registered.proportional)

    def replaced(self, module: str, arrays: Tensors, record: Record) -> dict[str, np.ndarray]:
        """The base's own parameters in place of those of a `full` module, float64, of the same names and shapes, in the same order."""
        found = {}
        for key, array in arrays.items():
            if array.ndim > 1:
                acts = input_first(array, module) if record.get("orientation") == "torch" else array
                matrix = weight_of(self._base, module, record, (math.prod(acts.shape[:-1]), acts.shape[-1]))
                found[key] = as_torch(matrix, array.shape, module) if acts is not array else matrix.reshape(array.shape)
            else:
                found[key] = self._vector(module, key, array.shape)
        return {key: array.astype(np.float64) for key, array in found.items()}

    def _vector(self, module: str, key: str, shape: tuple[int, ...]) -> np.ndarray:
        if self._base is None:
            raise ConfigError(NEEDS_BASE)
        name = f"{module}.{key}"
        arrays: Mapping[str, np.ndarray] = getattr(self._base, "arrays", dict)()
        if name not in arrays:
            raise FormatError(f"the base '{self._base.path}' has no array {name!r}")
        if (own := arrays[name]).shape != shape:
            raise FormatError(f"its {key} has the shape {shape}, {name!r} in the base {own.shape}")
        return np.asarray(own)

    def _matrix(self, module: str, record: Record, held: Tensors) -> np.ndarray:
        method = record["method"]
        if method in WHOLE:
            return _whole(module, record, held, self._base)
        if method == "dora" and held.keys() == {"lora_A", "lora_B", "magnitude"}:
            if "experts" in record:
                raise ConfigError("it is DoRA of a stack of experts, whose norms loratk does not know")
            shape = held["lora_A"].shape[0], held["lora_B"].shape[1]
            return dora_update(weight_of(self._base, module, record, shape), record, held)
        if method not in self._registry.methods:
            raise ConfigError(unknown(method, self._registry))
        return _registered(module, record, held, self._registry, self._base)

    def _inputs(self) -> int:
        """d of the only module of VeRA, which is that of the shared matrices; 0 where there are several."""
        alone = [name for name in self.modules if self.state.modules[name]["method"] == "vera"]
        return int(self._shared["vera_A"].shape[-1]) if "vera_A" in self._shared and len(alone) == 1 else 0

    def _other(self, module: str, record: Record, held: Tensors, d: int) -> tuple[Record, list[Pair] | np.ndarray]:
        base = self._base if module in self._in_base else None
        wide = {key: array.astype(np.float64) if array.dtype.kind == "f" else array for key, array in held.items()}
        try:
            other = as_other(record, wide, module, base, shared=self._shared, d=d)
            other.check()
            if other.low and other.magnitude is None:
                made = as_lora(other)[0]
                return made[0], _finite(update_pairs(*made))
            kind = f"conv{len(other.window)}d" if other.window else "linear"
            lies = {"layer_type": kind, "shape": list(other.sizes[::-1])} | ({"kernel": list(other.window)} if other.window else {})
            return {**record, **lies}, _finite(to_input_first(other.delta(), other.window))
        except LoratkError as error:
            lacks = f" (the base '{self._base.path}' has no module of that name)" if self._base is not None and base is None else ""
            raise ConfigError(f"{error}{lacks}") from error


def unknown(method: str, registry: Registry) -> str:
    """That nobody knows what a method does."""
    return f"its method {method!r} is none that is installed; known are {choices({*KNOWN, *registry.methods})}"


def _finite(update: Any) -> Any:
    """An update as it is. Raises AnomalyError if a number in it is not finite."""
    arrays = [update] if isinstance(update, np.ndarray) else [factor for pair in update for factor in pair]
    if not all(np.isfinite(array).all() for array in arrays):
        raise AnomalyError("its update is not finite")
    return update


def _registered(module: str, record: Record, held: Tensors, registry: Registry, base: Base | None) -> np.ndarray:
    """The update of a method that a plugin, or loratk itself, trains; one that is proportional to its scaling needs no weight."""
    method, shape = registry.method(record["method"]), tuple(record.get("shape", ()))
    if len(shape) != 2:
        raise FormatError("its record does not say the shape of its weight")
    weight = np.zeros(shape) if method.proportional and base is None else weight_of(base, module, record, shape)
    if found := list(method.parameter_faults(held, *shape, record.get("rank", 0))):
        raise FormatError("; ".join(found))
    wide = {key: array.astype(np.float64) if array.dtype.kind == "f" else array for key, array in held.items()}
    scaling = float(record.get("scaling", 1.0))
    return np.asarray(method.delta(get_backend("reference"), weight.astype(np.float64), wide, scaling))


def _whole(module: str, record: Record, held: Tensors, base: Base | None) -> np.ndarray:
    """What a module replaced by another, or a difference, adds to its weight, (d, k)."""
    if "weight" not in held or held["weight"].ndim < 2:
        raise ConfigError(f"it changes no weight of two axes, only {choices(held)}")
    array = held["weight"].astype(np.float64)
    if record.get("orientation") == "torch":
        array = input_first(array, module)
    matrix = array.reshape(math.prod(array.shape[:-1]), array.shape[-1])
    return matrix if record["method"] == "diff" else matrix - weight_of(base, module, record, matrix.shape)


def as_torch(matrix: np.ndarray, shape: tuple[int, ...], module: str) -> np.ndarray:
    """A matrix (d, k) as an array of this shape in torch's order: the inverse of what `input_first` and a reshape make of it."""
    if len(shape) < 2 or (len(shape) == 2 and module.rpartition(".")[2] in EMBEDDINGS):
        return matrix.reshape(shape)
    array = matrix.reshape(*shape[2:], shape[1], shape[0])
    return np.ascontiguousarray(array.transpose(array.ndim - 1, array.ndim - 2, *range(array.ndim - 2)))


def weight_of(base: Base | None, module: str, record: Record, shape: tuple[int, ...]) -> np.ndarray:
    """The base's weight as it acts, of this shape; of a block of a fused projection its columns."""
    if base is None:
        raise ConfigError(NEEDS_BASE)
    columns = record.get("columns")
    weight = base.weight(module.rpartition(".")[0])[:, slice(*columns)] if columns else base.weight(module)
    if weight.shape == shape:
        return weight
    if weight.shape == shape[::-1] and record.get("layer_type") == "embedding":  # its order can only be told by the record
        return weight.T
    raise FormatError(f"its weight acts as {weight.shape} in the base, and the adapter is for {shape}; is it the right base?")
