"""An adapter as the simplest reader takes it: one rank, alpha = rank, nothing left to multiply."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..errors import ConfigError, choices
from .joining import joined_state
from .others import KNOWN
from .state import AdapterState
from .transform import rebuilt, round_bfloat16

Module = tuple[dict[str, Any], dict[str, np.ndarray]]


def portable(state: AdapterState) -> AdapterState:
    """The same update with one rank in all modules, alpha = rank and scaling 1: for readers that know neither patterns nor rslora.

    Ranks are filled up with zeros, the scaling is multiplied into lora_B and lora_bias. Exact but for the rounding of that product, for
    which half precision becomes float32 where it could not hold it. Raises ConfigError for other methods than LoRA and DoRA.
    """
    state = joined_state(state)
    parameters = state.parameters()
    factors = [module for module, held in parameters.items() if "lora_A" in held]
    if other := [module for module, record in state.modules.items() if _scales(record) and module not in factors]:
        methods = choices({state.modules[module]["method"] for module in other})
        raise ConfigError(
            f"Adapter {state.name!r} cannot be made portable: {methods}, as in {other[0]!r}, has no factors lora_A and lora_B to fill up; "
            "--bake (loratk.exchange.plain_lora) makes LoRA of it first."
        )
    unit = math.lcm(*(state.modules[module].get("groups", 1) for module in factors))
    rank = -(-max((state.modules[module]["rank"] for module in factors), default=1) // unit) * unit
    modules = {module: (dict(state.modules[module]), held) for module, held in parameters.items()}
    return rebuilt(state, modules | {module: _folded(*modules[module], rank) for module in factors})


def _scales(record: dict[str, Any]) -> bool:
    """Whether a module is a method's, and not a bias or a whole module beside."""
    return "scaling" in record or record["method"] in KNOWN


def _folded(record: dict[str, Any], held: dict[str, np.ndarray], rank: int) -> Module:
    """One module with its factors filled up to a rank, and its scaling in lora_B."""
    groups, scaling = record.get("groups", 1), float(record["scaling"])
    if (record["rank"], record["alpha"], scaling) == (rank, rank, 1.0):
        return record, held
    grown = held | {"lora_A": _filled(held["lora_A"], rank, -1, groups), "lora_B": _filled(held["lora_B"], rank // groups, -2)}
    dtypes = dict(record.get("dtypes", {}))
    for name in ("lora_B", "lora_bias"):
        if name in grown:
            grown[name] = scaled(grown[name], scaling, dtypes, name)
    said = f"alpha {record['alpha']:g}, rank {record['rank']}, scaling {scaling:g} folded into lora_B"
    new = record | {"rank": rank, "alpha": float(rank), "scaling": 1.0, "alpha_source": said, "dtypes": dtypes}
    return {key: value for key, value in new.items() if key != "dtypes" or value}, grown


def _filled(array: np.ndarray, size: int, axis: int, parts: int = 1) -> np.ndarray:
    """An axis filled up to a size with zeros, at the end of each of its equal parts."""
    axis += array.ndim
    cut = array.reshape(*array.shape[:axis], parts, array.shape[axis] // parts, *array.shape[axis + 1 :])
    widths = [(0, 0)] * cut.ndim
    widths[axis + 1] = (0, size // parts - cut.shape[axis + 1])
    return np.pad(cut, widths).reshape(*array.shape[:axis], size, *array.shape[axis + 1 :])


def scaled(array: np.ndarray, scaling: float, dtypes: dict[str, str], name: str) -> np.ndarray:
    """An array times the scaling in its own dtype if that is exact, else in at least float32; `dtypes` forgets it then."""
    product = array.astype(np.float64) * scaling
    with np.errstate(over="ignore", under="ignore"):
        same = round_bfloat16(product) if name in dtypes else product.astype(array.dtype)
    if np.array_equal(same, product):
        return same
    dtypes.pop(name, None)
    return product.astype(np.result_type(array.dtype, np.float32))
