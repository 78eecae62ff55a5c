"""First factors, learned gains and diagonals, which loratk keeps apart, joined to the factors: plain LoRA for everyone else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .state import AdapterState
from .transform import rebuilt

Module = tuple[dict[str, Any], dict[str, np.ndarray]]
DIAGONALS = {"lora_E": "singular values", "gate": "gates"}
"""Parameters (r,) between the factors: AdaLoRA's and SoRA's."""


def joined(record: Mapping[str, Any], held: Mapping[str, np.ndarray]) -> Module:
    """A module whose init moved the base, or whose scaling was learned, as LoRA: [A, A0] and [B; -B0] of twice the rank, scaling * gain.

    A diagonal between the factors (AdaLoRA, SoRA) goes into A. Of any other the same record and parameters. Exact, but for the rounding of
    A times a diagonal, and where first factors and a gain come together: there B is gain * B, rounded.
    """
    record, held = dict(record), dict(held)
    if "lora_A" not in held or held.keys().isdisjoint({"initial_A", "gain", *DIAGONALS}):
        return record, held
    if found := [name for name in DIAGONALS if name in held]:
        return _without_diagonal(record, held, found[0])
    rank, scaling = record["rank"], float(record["scaling"])
    marks = dict(record.get("dtypes", {}))
    gain = None if "gain" not in held else float(held.pop("gain")[0])
    marks.pop("gain", None)
    if "initial_A" not in held:
        assert gain is not None
        said = f"alpha {record['alpha']:g}, times a learned gain of {gain:g}"
        record |= {"method": "lora", "scaling": scaling * gain, "alpha": record["alpha"] * gain, "alpha_source": said}
    else:
        if gain is not None:
            held["lora_B"] = (held["lora_B"] * np.float64(gain)).astype(np.result_type(held["lora_B"], np.float32))
            marks.pop("lora_B", None)
        a0, b0 = held.pop("initial_A"), held.pop("initial_B")
        held["lora_A"] = np.concatenate([held["lora_A"], a0], axis=-1)
        held["lora_B"] = np.concatenate([held["lora_B"], -b0], axis=-2)
        for name, first in (("lora_A", marks.pop("initial_A", None)), ("lora_B", marks.pop("initial_B", None))):
            if first is None:
                marks.pop(name, None)
        source = f"scaling {scaling:g} of rank {rank}, kept"
        record |= {"method": "lora", "rank": 2 * rank, "alpha": record["alpha"] * _growth(record, rank), "alpha_source": source}
    if "dtypes" in record:
        record = {key: value for key, value in record.items() if key != "dtypes"} | ({"dtypes": marks} if marks else {})
    return record, held


def _without_diagonal(record: dict[str, Any], held: dict[str, np.ndarray], name: str) -> Module:
    a, diagonal = held["lora_A"], held.pop(name).astype(np.float64)
    held["lora_A"] = (a * diagonal).astype(np.result_type(a, np.float32))
    said = f"alpha {record['alpha']:g} of {record['method']}, kept"
    record = {key: value for key, value in record.items() if key != "options"} | {"method": "lora", "alpha_source": said}
    if marks := {key: mark for key, mark in record.pop("dtypes", {}).items() if key not in ("lora_A", name)}:
        record["dtypes"] = marks
    return record, held


def _growth(record: Mapping[str, Any], rank: int) -> float:
    """By how much alpha must grow with twice the rank for the scaling to stay: 2, or sqrt 2 where it is alpha / sqrt(rank)."""
    stabilised = rank > 1 and np.isclose(record["scaling"], record["alpha"] / rank**0.5, rtol=1e-9)
    return float(2**0.5) if stabilised and record["alpha"] else 2.0


def joined_state(state: AdapterState) -> AdapterState:
    """A state with every module joined; the same state if none has anything to join."""
    return joined_states([state])[0][0]


def joined_states(states: Sequence[AdapterState]) -> tuple[list[AdapterState], list[str]]:
    """States with every module joined, and a note for what was."""
    made, notes = [], []
    for state in states:
        said: Counter[str] = Counter()
        modules = {}
        for module, held in state.parameters().items():
            record = state.modules[module]
            modules[module] = joined(record, held)
            if "initial_A" in held and "lora_A" in held:
                rank = record["rank"]
                said[f"what its init took off the base is in the factors, rank {rank} made {2 * rank}: exact"] += 1
            for name, what in DIAGONALS.items():
                if name in held and "lora_A" in held:
                    said[f"its {what} are in lora_A"] += 1
            if "gain" in held and "lora_A" in held:
                said["its learned gain is in " + ("lora_B" if "initial_A" in held else "alpha")] += 1
        made.append(rebuilt(state, modules) if said else state)
        notes += [f"adapter {state.name!r}, {count} module{'s' * (count != 1)}: {line}" for line, count in said.items()]
    return made, notes
