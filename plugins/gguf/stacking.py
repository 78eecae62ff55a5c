"""Experts that are modules of their own as the one stack that llama.cpp keeps them in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from loratk.errors import choices
from loratk.exchange.portable import scaled

Expert = tuple[str, Mapping[str, Any], dict[str, np.ndarray]]
Stack = tuple[dict[str, Any], dict[str, np.ndarray], dict[str, str]]


def stacked(tensor: str, group: Mapping[int, Expert], found: list[str]) -> Stack | None:
    """A record, the factors (E, d, r), (E, r, k) and their dtypes, of experts by number: one rank, filled up with zeros, and one scaling.

    All experts from 0 up must be there, of one shape; what is wrong goes to `found`, and None comes back where no stack can be made.
    """
    experts = [group[number] for number in sorted(group)]
    if sorted(group) != list(range(len(group))):
        lacks = [number for number in range(max(group) + 1) if number not in group]
        found.append(f"{tensor!r} must have every expert up to {max(group)}; there are none for {', '.join(map(str, lacks[:8]))}")
    shapes = {(held["lora_A"].shape[0], held["lora_B"].shape[1]) for _, _, held in experts}
    if len(shapes) > 1 or any("experts" in record for _, record, _ in experts):
        found.append(f"the experts of {tensor!r}, such as {choices([experts[0][0]])}, must be of one shape, found {sorted(shapes)}")
        return None
    rank = max(record["rank"] for _, record, _ in experts)
    scalings = {float(record["scaling"]) for _, record, _ in experts}
    one = scalings.pop() if len(scalings) == 1 else 1.0
    a, b, marks = [], [], []
    for _, record, held in experts:
        mine = dict(record.get("dtypes", {}))
        lora_b = held["lora_B"] if record["scaling"] == one else scaled(held["lora_B"], record["scaling"] / one, mine, "lora_B")
        a.append(np.pad(held["lora_A"], ((0, 0), (0, rank - record["rank"]))))
        b.append(np.pad(lora_b, ((0, rank - record["rank"]), (0, 0))))
        marks.append(mine)
    dtypes = {name: "bfloat16" for name in ("lora_A", "lora_B") if all(name in mine for mine in marks)}
    record = {**experts[0][1], "rank": rank, "alpha": one * rank, "scaling": one, "experts": len(experts)}
    return record, {"lora_A": np.stack(a), "lora_B": np.stack(b)}, dtypes
