"""An update that depends on the base's weight as the plain LoRA nearest to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import ConfigError, FormatError, UnknownNameError, faults
from .factors import dense_update, nearest_pair
from .format import Base
from .state import AdapterState
from .transform import rebuilt

Module = tuple[dict[str, Any], dict[str, np.ndarray]]


def bake_dora(states: Sequence[AdapterState], base: Base, rank: int | None = None) -> tuple[list[AdapterState], list[str]]:
    """DoRA modules as LoRA: the best factors of a rank (None: the module's own) for m (W + update) / ||W + update|| - W, and notes.

    The factors come from the singular values of the dense difference, in float64; each note tells what of it they leave out. Raises
    ConfigError that lists each module whose weight the base lacks or has in another shape.
    """
    found: list[str] = []
    notes: list[str] = []
    baked = []
    for state in states:
        modules: dict[str, Any] = {}
        for module, held in state.parameters().items():
            record = state.modules[module]
            modules[module] = record, held
            if "magnitude" not in held:
                continue
            try:
                matrix = dora_update(_weight(base, module, record, held), record, held)
            except (FormatError, UnknownNameError) as error:
                found.append(f"adapter {state.name!r}, module {module!r}: {error}")
                continue
            modules[module], lost = _as_lora(record, held, matrix, rank or record["rank"])
            notes.append(
                f"adapter {state.name!r}, module {module!r}: DoRA baked to rank {modules[module][0]['rank']}, {lost:.2%} of it lost"
            )
        baked.append(rebuilt(state, modules))
    if found:
        raise ConfigError(faults(f"DoRA cannot be baked with the base '{base.path}':", found))
    return baked, notes


def dora_update(weight: np.ndarray, record: Mapping[str, Any], held: Mapping[str, np.ndarray]) -> np.ndarray:
    """W' - W of a DoRA module, W' = m (W + update) / ||W + update||, the norm of each column: (d, k), float64. Liu et al. 2024, eq. 5."""
    weight = weight.astype(np.float64)
    moved = weight + dense_update(record, held)
    norm = np.linalg.norm(moved, axis=0)
    ratio = np.divide(held["magnitude"], norm, out=np.zeros_like(norm), where=norm > 0)
    return np.asarray(moved * ratio - weight)


def _weight(base: Base, module: str, record: dict[str, Any], held: dict[str, np.ndarray]) -> np.ndarray:
    weight, shape = base.weight(module), (held["lora_A"].shape[0], held["lora_B"].shape[1])
    if weight.shape == shape:
        return weight
    if weight.shape == shape[::-1] and record.get("layer_type") == "embedding":  # its order can only be told by the record
        return weight.T
    raise FormatError(f"its weight acts as {weight.shape} there, and the adapter is for {shape}; is the base's order of axes right?")


def _as_lora(record: dict[str, Any], held: dict[str, np.ndarray], matrix: np.ndarray, rank: int) -> tuple[Module, float]:
    """A module whose update is the best of a rank for a matrix (d, k), group by group, and the share of the matrix that it leaves out."""
    groups = record.get("groups", 1)
    each = max(rank // groups, 1)
    factors = [nearest_pair(block, each) for block in np.split(matrix, groups, axis=1)]
    new = {key: value for key, value in record.items() if key != "dtypes"}
    new |= {"method": "lora", "rank": each * groups, "alpha": float(each * groups), "scaling": 1.0, "alpha_source": "baked from DoRA"}
    dtype = np.result_type(held["lora_A"].dtype, np.float32)
    kept = {key: array for key, array in held.items() if key != "magnitude"}
    kept |= {"lora_A": np.hstack([a for a, _ in factors]).astype(dtype), "lora_B": np.hstack([b for _, b in factors]).astype(dtype)}
    if "lora_bias" in kept:
        kept["lora_bias"] = (kept["lora_bias"] * np.float64(record["scaling"])).astype(dtype)
    lost, whole = np.linalg.norm(matrix - dense_update(new, kept)), np.linalg.norm(matrix)
    return (new, kept), float(lost / whole) if whole else 0.0
