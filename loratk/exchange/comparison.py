"""Whether two adapters are the same: what each adds to each weight, compared by the factors, never as matrices (d, k)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..errors import ConfigError, choices
from .factors import frobenius, together, update_pairs
from .plain import as_factors, shared_modules
from .state import AdapterState, dtypes_of

Pairs = list[tuple[AdapterState, AdapterState]]
Record = Mapping[str, Any]
Tensors = Mapping[str, np.ndarray]
FACTORS = ("lora_A", "lora_B")
STRUCTURE = ("method", "shape", "groups", "experts", "kernel", "columns", "orientation")
"""What must agree for updates to be comparable, where both records say it."""
REMARKS = ("rank", "alpha", "scaling", "layer_type")


@dataclass(frozen=True)
class ModuleDifference:
    """One module of two adapters.

    parts: for each part ("update" for the factors and their scaling, or a parameter) the norm of the difference over the larger of the two
    norms: 0 for equal, above 1 for opposed. relative: the largest of them; inf where the two cannot be compared, for the `faults` named.
    identical: whether all parameters and scalings are equal bit by bit. norms and cosine: of the two updates, None where there is no such
    thing. remarks: what differs, though the update may be the same, such as the rank.
    """

    name: str
    relative: float
    parts: dict[str, float]
    identical: bool
    cosine: float | None
    norms: tuple[float, float] | None
    faults: list[str]
    remarks: list[str]


@dataclass(frozen=True)
class Comparison:
    """Two adapters: modules of both, and of one only. `same`: no module is in one only, and none differs by more than the tolerance."""

    names: tuple[str, str]
    tolerance: float
    modules: list[ModuleDifference]
    only_a: list[str]
    only_b: list[str]

    @property
    def same(self) -> bool:
        """Whether they are the same within the tolerance."""
        return not self.only_a and not self.only_b and not self.differing

    @property
    def identical(self) -> bool:
        """Whether they are equal bit by bit, names, metadata and dtypes aside."""
        return not self.only_a and not self.only_b and all(module.identical for module in self.modules)

    @property
    def differing(self) -> list[ModuleDifference]:
        """The modules of both that differ by more than the tolerance."""
        return [module for module in self.modules if not module.relative <= self.tolerance]


def diff(
    a: AdapterState,
    b: AdapterState,
    *,
    tolerance: float = 1e-6,
    track: Callable[[Sequence[str], str], Iterable[str]] = lambda items, what: items,
) -> Comparison:
    """Compare what two adapters add, module by module, in float64 and O((d + k) r^2): ranks and scalings may differ where updates agree.

    `track` is given the modules and a few words, and yields the modules: for a progress bar.
    """
    left, right = a.parameters(), b.parameters()
    for mine, other in ((left, right), (right, left)):  # what VeRA shares is no update
        for name in [name for name in shared_modules(a if mine is left else b) if name not in other]:
            del mine[name]
    common = [module for module in left if module in right]
    modules = [_module(name, *_pair(a, b, name, left[name], right[name])) for name in track(common, "comparing")]
    alike = {name for name in common if a.modules[name]["method"] == b.modules[name]["method"]}
    modules = [replace(module, identical=module.identical and module.name in alike) for module in modules]
    only_a, only_b = ([name for name in mine if name not in other] for mine, other in ((left, right), (right, left)))
    return Comparison((a.name, b.name), tolerance, modules, only_a, only_b)


def paired(left: Sequence[AdapterState], right: Sequence[AdapterState]) -> tuple[Pairs, list[str], list[str]]:
    """The adapters of two files to compare, and the names in one only: one of each whatever their names, else those of equal name.

    Raises ConfigError where no name is in both.
    """
    if len(left) == len(right) == 1:
        return [(left[0], right[0])], [], []
    ours, theirs = ({state.name: state for state in states} for states in (left, right))
    pairs = [(state, theirs[name]) for name, state in ours.items() if name in theirs]
    if not pairs:
        raise ConfigError(
            f"no adapter has the same name in both: {choices(ours)}, and {choices(theirs)}; choose one of each (--adapter-a, --adapter-b)"
        )
    return pairs, sorted(ours.keys() - theirs), sorted(theirs.keys() - ours)


def _pair(a: AdapterState, b: AdapterState, name: str, mine: Tensors, others: Tensors) -> tuple[Record, Tensors, Record, Tensors]:
    """The records and parameters of a module of both, those of other methods by their factors: what they add is compared."""
    one, two = a.modules[name], b.modules[name]
    same = one["method"] == two["method"] and one.get("scaling") == two.get("scaling")
    if same and mine.keys() == others.keys() and all(np.array_equal(mine[key], others[key]) for key in mine):
        return one, mine, two, others
    return *as_factors(a, name, d=_inputs(two)), *as_factors(b, name, d=_inputs(one))


def _inputs(record: Record) -> int:
    return int((record.get("shape") or (0,))[0])


def _module(name: str, one: Record, mine: Tensors, two: Record, others: Tensors) -> ModuleDifference:
    found = list(_structure(one, mine, two, others))
    remarks = [f"{key} {one[key]} and {two[key]}" for key in REMARKS if key in one and key in two and one[key] != two[key]]
    dtypes = dtypes_of(one, mine), dtypes_of(two, others)
    remarks += [f"{dtypes[0]} and {dtypes[1]}"] if dtypes[0] != dtypes[1] else []
    if found:
        return ModuleDifference(name, math.inf, {}, False, None, None, found, remarks)
    parts: dict[str, float] = {}
    norms = cosine = None
    if "lora_A" in mine:
        both = together(update_pairs(one, mine), update_pairs(two, others))
        norms, cosine = both.norms, both.cosine
        parts["update"] = _relative(both.difference, *norms)
    for key in sorted(mine):
        if key not in FACTORS:
            parts[key] = _arrays(*(_scaled(key, record, held[key]) for record, held in ((one, mine), (two, others))))
    same = all(np.array_equal(mine[key], others[key]) for key in mine) and one.get("scaling") == two.get("scaling")
    return ModuleDifference(name, max(parts.values(), default=0.0), parts, same, cosine, norms, [], remarks)


def _structure(one: Record, mine: Tensors, two: Record, others: Tensors) -> Iterator[str]:
    """Why two modules cannot be compared."""
    for key in STRUCTURE:
        if key in one and key in two and one[key] != two[key]:
            yield f"{key} {one[key]} and {two[key]}"
    for key, side in ((key, "first") for key in mine if key not in others):
        yield f"{key} in the {side} only"
    for key in others:
        if key not in mine:
            yield f"{key} in the second only"
    plain = "lora_A" in mine and "lora_A" in others
    if one.get("groups", 1) != two.get("groups", 1) and not ("groups" in one and "groups" in two):
        yield f"groups {one.get('groups', 1)} and {two.get('groups', 1)}"
    if not plain and one.get("scaling", 1.0) != two.get("scaling", 1.0):
        yield f"scaling {one.get('scaling', 1.0)} and {two.get('scaling', 1.0)}"
    for key in sorted(set(mine) & set(others)):
        shapes = mine[key].shape, others[key].shape
        if plain and key in FACTORS:
            shapes = tuple(shape[:-1] if key == "lora_A" else (*shape[:-2], *shape[-1:]) for shape in shapes)  # type: ignore[assignment]
        if shapes[0] != shapes[1]:
            yield f"{key} of shape {mine[key].shape} and {others[key].shape}"


def _scaled(key: str, record: Record, array: np.ndarray) -> np.ndarray:
    return array.astype(np.float64) * (record.get("scaling", 1.0) if key == "lora_bias" else 1.0)


def _arrays(left: np.ndarray, right: np.ndarray) -> float:
    return _relative(*(frobenius(array) for array in (left - right, left, right)))


def _relative(distance: float, left: float, right: float) -> float:
    return distance / max(left, right) if distance else 0.0
