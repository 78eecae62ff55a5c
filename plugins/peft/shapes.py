"""Fields of PEFT's other methods by which it makes modules of just the shapes that are saved; where there are none, that is a fault."""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np

from loratk.errors import choices

from . import others
from .patterns import Matcher

Records = Mapping[str, Mapping[str, Any]]
Held = Mapping[str, Mapping[str, np.ndarray]]


def told(method: str, records: Records, held: Held, kept: Mapping[str, Any], found: list[str]) -> dict[str, Any]:
    """The fields that follow from the tensors; what no fields can say goes to `found`."""
    if method == "IA3":
        return _ia3(records, kept)
    if method == "VERA":
        return _vera(records, held, found)
    if method in ("LOHA", "LOKR"):
        return _windows(records, held, found) | (_lokr(records, held, kept, found) if method == "LOKR" else {})
    return {}


def _ia3(records: Records, kept: Mapping[str, Any]) -> dict[str, Any]:
    """feedforward_modules: what is scaled at its inputs; as it was where that says so."""
    sides = {module: record.get("side") for module, record in records.items()}
    if None in sides.values():
        return {} if "feedforward_modules" in kept else {"feedforward_modules": []}
    before, matcher = kept.get("feedforward_modules"), Matcher()
    if before is not None and all(others.feedforward(before, module, matcher) == (side == "inputs") for module, side in sides.items()):
        return {}
    inputs = [module for module, side in sides.items() if side == "inputs"]
    return {"feedforward_modules": "|".join(map(re.escape, inputs)) if inputs else []}


def _vera(records: Records, held: Held, found: list[str]) -> dict[str, Any]:
    ranks = {len(held[module]["vera_lambda_d"]) for module in records if "vera_lambda_d" in held[module]}
    if len(ranks) > 1:
        found.append(f"PEFT's VeRA has one rank, found {choices(sorted(ranks))}; --bake makes LoRA of it")
    return {}


def _windows(records: Records, held: Held, found: list[str]) -> dict[str, Any]:
    """use_effective_conv2d: whether convolutions have a core."""
    kinds: dict[bool, list[str]] = {}
    for module, record in records.items():
        names = held[module].keys()
        core = not names.isdisjoint({"hada_t1", "lokr_t2"})
        if (core or prod(record.get("kernel", ())) > 1) and not names.isdisjoint({"hada_w1_a", "lokr_w2_a"}):
            kinds.setdefault(core, []).append(module)
    if len(kinds) > 1:
        found.append(f"in PEFT all convolutions have a core or none, and {kinds[True][0]!r} has one, {kinds[False][0]!r} has not")
    return {"use_effective_conv2d": True in kinds} if kinds else {}


def _lokr(records: Records, held: Held, kept: Mapping[str, Any], found: list[str]) -> dict[str, Any]:
    """decompose_factor and decompose_both under which PEFT's modules have these factors."""
    sizes = {module: _sizes(record, held[module]) for module, record in records.items()}
    first = [kept.get("decompose_factor", -1), -1]
    factors = [*first, *sorted({size for (outer, inner), _ in sizes.values() for size in (*outer, *inner)})]
    both = [bool(kept.get("decompose_both", False)), False, True]
    for factor in dict.fromkeys(factors):
        if all(_split(outer, factor) == outer and _split(inner, factor) == inner for (outer, inner), _ in sizes.values()):
            for decompose in dict.fromkeys(both):
                if all(_halves(*sizes[module], decompose, record["rank"]) for module, record in records.items()):
                    return {"decompose_factor": factor, "decompose_both": decompose}
    found.append("PEFT's LoKr has one way to split all weights, and these are split in others; --bake makes LoRA of it")
    return {}


def _sizes(record: Mapping[str, Any], held: Mapping[str, np.ndarray]) -> tuple[tuple[tuple[int, int], tuple[int, int]], tuple[bool, bool]]:
    """(k1, k2) and (d1, d2), and whether each factor is in halves; d2 without the window."""
    ends = []
    for side in "12":
        if (whole := held.get(f"lokr_w{side}")) is not None:
            ends.append(whole.shape[:2])
        elif side == "2" and "lokr_t2" in held:
            ends.append((held["lokr_w2_a"].shape[1], held["lokr_w2_b"].shape[1]))
        else:
            window = prod(record.get("kernel", ())) if side == "2" else 1
            ends.append((held[f"lokr_w{side}_a"].shape[0], held[f"lokr_w{side}_b"].shape[1] // window))
    (k1, d1), (k2, d2) = ends
    return ((k1, k2), (d1, d2)), ("lokr_w1" not in held, "lokr_w2" not in held)


def _halves(sizes: tuple[tuple[int, int], tuple[int, int]], halves: tuple[bool, bool], decompose: bool, rank: int) -> bool:
    """Whether PEFT would have the same factors in halves."""
    (k1, k2), (d1, d2) = sizes
    return halves == (decompose and rank < max(k1, d1) / 2, rank < max(k2, d2) / 2)


def _split(sizes: tuple[int, int], factor: int) -> tuple[int, int]:
    """How PEFT's `factorization` splits the product: by a factor that divides it, however large, else into the nearest up to it."""
    size = sizes[0] * sizes[1]
    if factor > 0 and size % factor == 0:
        return factor, size // factor
    largest = size if factor < 0 else factor
    smaller = max(n for n in range(1, int(size**0.5) + 1) if size % n == 0 and n <= largest)
    return smaller, size // smaller
