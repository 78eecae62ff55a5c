"""What a module of an adapter adds to its weight, whatever its method, as singular value decompositions of its parts."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ..errors import AnomalyError, ConfigError, FormatError, LoratkError, choices
from ..exchange import AdapterState, Base
from ..exchange.bake import dora_update
from ..exchange.base import input_first
from ..exchange.factors import frobenius, update_pairs
from ..exchange.others import KNOWN, Other
from ..exchange.plain import as_lora, as_other, is_shared, shared_of
from ..exchange.plain import input_first as to_input_first
from ..kernels import get_backend
from ..plugins import Registry
from .rounding import Svd, svd

Record = Mapping[str, Any]
Tensors = Mapping[str, np.ndarray]
BIASES = frozenset({"bias", "lora_bias"})
NOISE = 1e-6
"""Directions whose singular value is below this share of the largest are rounding of factors in float32, and none of the spaces."""


STRUCTURE = ("shape", "groups", "experts", "kernel", "columns")
"""What must agree for two updates to be comparable, where both records say it."""


def disagreements(one: Record, two: Record) -> list[str]:
    """Why the updates of two records cannot be compared."""
    return [f"{key} {one[key]} and {two[key]}" for key in STRUCTURE if key in one and key in two and one[key] != two[key]]


@dataclass(frozen=True, eq=False)
class Update:
    """What is added to a weight, as parts that share no entry: one, or one for each group of a convolution and each expert of a stack."""

    parts: list[Svd]

    @cached_property
    def norm(self) -> float:
        """Its Frobenius norm."""
        return frobenius(self.values)

    @cached_property
    def values(self) -> np.ndarray:
        """The singular values of all parts together, falling."""
        return np.sort(np.concatenate([part.s for part in self.parts]))[::-1]

    @cached_property
    def spaces(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """For each part orthonormal bases of what it reads of the inputs (d, i) and writes to the outputs (k, i), without noise."""
        floor = NOISE * float(self.values.max(initial=0.0))
        counts = [int(np.count_nonzero(part.s > floor)) for part in self.parts]
        return [(part.u[:, :count], part.v[:count].T) for part, count in zip(self.parts, counts, strict=True)]

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """(d, k) of each part."""
        return [(len(part.u), part.v.shape[1]) for part in self.parts]


class Updates:
    """The updates of one adapter, a module at a time."""

    def __init__(self, state: AdapterState, registry: Registry, base: Base | None = None) -> None:
        self.state, self._registry, self._base = state, registry, base
        self._held, self._shared = state.parameters(), shared_of(state)
        self._in_base = frozenset(base.modules()) if base is not None else frozenset[str]()
        self._own = dict.fromkeys(name for name, held in self._held.items() if not is_shared(state.modules[name], held))
        self.modules = list(self._own)
        """Those that are updates: VeRA's shared matrices are none."""

    def __contains__(self, module: object) -> bool:
        return module in self._own

    def of(self, module: str, *, d: int = 0) -> Update:
        """What a module adds to its weight. `d`: the inputs, for a method (VeRA) that may not tell them.

        From the factors where the method has some, else from the dense difference. Raises LoratkError where that needs a base that is
        not given or lacks the module, or the method is not known.
        """
        record = self.state.modules[module]
        held = {key: array for key, array in self._held[module].items() if key not in BIASES}
        method = record["method"]
        if not held:
            raise ConfigError("it changes a bias alone, no weight")
        if method in ("full", "diff"):
            return _dense(_whole(module, record, held, self._base), record)
        if method == "lora" and held.keys() == {"lora_A", "lora_B"}:
            return Update([svd(pair) for pair in update_pairs(record, held)])
        if method == "dora" and held.keys() == {"lora_A", "lora_B", "magnitude"}:
            if "experts" in record:
                raise ConfigError("it is DoRA of a stack of experts, whose norms the report does not know")
            shape = held["lora_A"].shape[0], held["lora_B"].shape[1]
            return _dense(dora_update(weight_of(self._base, module, record, shape), record, held), record)
        if self._elsewhere(module):
            return self._other(module, record, held, d or self._inputs())
        if method not in self._registry.methods:
            raise ConfigError(_unknown(method, {*KNOWN, *self._registry.methods}))
        return _dense(_registered(module, record, held, self._registry, self._base), record)

    def biases(self) -> list[str]:
        """The modules that change a bias too, or alone."""
        return [name for name in self.modules if not BIASES.isdisjoint(self._held[name])]

    def obstacle(self, module: str) -> str | None:
        """Why nothing can be told of an update, as far as that shows before it is computed."""
        record, held = self.state.modules[module], self._held[module]
        if self._base is None and self.needs_base(module):
            return "it depends on the base's weight; give the base (--base)"
        if BIASES.issuperset(held):
            return "it changes a bias alone, no weight"
        known = {*KNOWN, *self._registry.methods, "full", "diff"}
        return None if record["method"] in known else _unknown(record["method"], known)

    def needs_base(self, module: str) -> bool:
        """Whether what a module adds depends on the base's weight."""
        method = self.state.modules[module]["method"]
        if self._elsewhere(module):
            return method in ("ia3", "glora", "dora_in") or "dora_scale" in self._held[module]
        registered = self._registry.methods.get(method)
        return method == "full" or "magnitude" in self._held[module] or (registered is not None and not registered.proportional)

    def _elsewhere(self, module: str) -> bool:
        """Whether a module is of a method that other tools train, with the parameters that they keep of it."""
        record, held = self.state.modules[module], self._held[module]
        if record["method"] not in KNOWN or record["method"] not in self._registry.methods:
            return record["method"] in KNOWN
        try:
            Other(record, held).check_names()
        except FormatError:  # loratk's own method of that name has parameters of its own
            return False
        return True

    def _inputs(self) -> int:
        """d of the only module of VeRA, which is that of the shared matrices; 0 where there are several."""
        alone = [name for name in self.modules if self.state.modules[name]["method"] == "vera"]
        return int(self._shared["vera_A"].shape[-1]) if "vera_A" in self._shared and len(alone) == 1 else 0

    def _other(self, module: str, record: Record, held: Tensors, d: int) -> Update:
        base = self._base if module in self._in_base else None
        try:
            other = as_other(record, held, module, base, shared=self._shared, d=d)
            other.check()
            if other.low and other.magnitude is None:
                return Update([svd(pair) for pair in update_pairs(*as_lora(other)[0])])
            return _dense(to_input_first(other.delta(), other.window), record)
        except LoratkError as error:
            lacks = f" (the base '{self._base.path}' has no module of that name)" if self._base is not None and base is None else ""
            raise ConfigError(f"{error}{lacks}") from error


def _unknown(method: str, known: Collection[str]) -> str:
    return f"its method {method!r} is none that is installed; known are {choices(known)}"


def _dense(matrix: np.ndarray, record: Record) -> Update:
    """A matrix (d, k), or a stack of them, by its decomposition, group by group."""
    matrices = list(matrix) if "experts" in record else np.split(matrix, record.get("groups", 1), axis=-1)
    if not all(np.isfinite(part).all() for part in matrices):
        raise AnomalyError("its update is not finite")
    return Update([Svd(*np.linalg.svd(part.astype(np.float64, copy=False), full_matrices=False)) for part in matrices])


def _registered(module: str, record: Record, held: Tensors, registry: Registry, base: Base | None) -> np.ndarray:
    """The update of a method that a plugin, or loratk itself, trains; one that is proportional to its scaling needs no weight."""
    method, shape = registry.method(record["method"]), tuple(record.get("shape", ()))
    if len(shape) != 2:
        raise FormatError("its record does not say the shape of its weight")
    weight = np.zeros(shape) if method.proportional and base is None else weight_of(base, module, record, shape)
    want, got = method.shapes(*shape, record.get("rank", 0)), {key: array.shape for key, array in held.items()}
    if want != got:
        raise FormatError(f"for a {shape} weight its tensors must be {want}, found {got}")
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


def weight_of(base: Base | None, module: str, record: Record, shape: tuple[int, ...]) -> np.ndarray:
    """The base's weight as it acts, of this shape; of a block of a fused projection its columns."""
    if base is None:
        raise ConfigError("it depends on the base's weight; give the base (--base)")
    columns = record.get("columns")
    weight = base.weight(module.rpartition(".")[0])[:, slice(*columns)] if columns else base.weight(module)
    if weight.shape == shape:
        return weight
    if weight.shape == shape[::-1] and record.get("layer_type") == "embedding":  # its order can only be told by the record
        return weight.T
    raise FormatError(f"its weight acts as {weight.shape} in the base, and the adapter is for {shape}; is it the right base?")
