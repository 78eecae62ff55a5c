"""What is worth a second look in an adapter that is sound as a file: nothing learned, broken numbers, an odd scale."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

import numpy as np

from ..errors import choices
from .state import AdapterState, value_faults

USUAL = (1 / 64, 64.0)
"""Scalings outside this are more often a mistake, such as alpha taken for the scaling, than a choice."""


def cautions(state: AdapterState) -> Iterator[str]:
    """A line for each: values that are not finite, updates that are zero, alpha 0, a scaling outside of USUAL."""
    yield from value_faults(state.tensors)
    factors = {module: held for module, held in state.parameters().items() if "lora_B" in held}
    zero = [module for module, held in factors.items() if _is_zero(held)]
    if zero and len(zero) == len(factors):
        yield "every update is zero: it was never trained, or its factors were lost on the way"
    elif zero:
        yield f"the updates of {_some(zero)} are zero"
    records = {module: state.modules[module] for module in factors}
    if silent := [module for module, record in records.items() if record["scaling"] == 0]:
        yield f"alpha is 0 for {_some(silent)}, so their updates count for nothing"
    low, high = USUAL
    if odd := [module for module, record in records.items() if record["scaling"] and not low <= abs(record["scaling"]) <= high]:
        values = sorted({record["scaling"] for module, record in records.items() if module in set(odd)})
        yield f"the scaling of {_some(odd)} is unusual ({', '.join(f'{value:g}' for value in values[:4])}); check where alpha came from"


def _is_zero(held: Mapping[str, np.ndarray]) -> bool:
    if "initial_A" in held:
        return all(np.array_equal(held[f"lora_{side}"], held[f"initial_{side}"]) for side in "AB")
    return not held["lora_B"].any() or not held["lora_A"].any()


def scale_lines(state: AdapterState) -> list[str]:
    """Ranks, alphas and scalings of an adapter and where alpha came from, one line for each combination, the commonest first."""
    seen = Counter(
        (record["rank"], record.get("alpha"), record["scaling"], record.get("alpha_source", ""))
        for record in state.modules.values()
        if "scaling" in record and "rank" in record
    )
    return [
        f"{count} module{'s' * (count != 1)} with rank {rank}, alpha {_number(alpha)}, scaling {_number(scaling)}"
        + (f" (alpha: {source})" if source else "")
        for (rank, alpha, scaling, source), count in seen.most_common()
    ]


def _some(modules: list[str]) -> str:
    return choices(modules) if len(modules) <= 4 else f"{choices(modules[:3])} and {len(modules) - 3} more"


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:g}"
