"""The shapes that the tensors of each method must have, in letters, and the sizes that a module's own tensors give the letters.

k outputs, c input channels, r rank, d = c times the window of a convolution. `*` is the window, `1` any number of axes of size 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from .table import KEYS

Shape = tuple[str, ...]


@dataclass
class Sizes:
    """The sizes of the letters, the window of a convolution (() where there is none), and what does not fit."""

    of: dict[str, int] = field(default_factory=dict)
    window: tuple[int, ...] = ()
    faults: list[str] = field(default_factory=list)


def wanted(method: str, held: Mapping[str, np.ndarray]) -> dict[str, Shape]:
    """The shapes of a module's parameters, by which of them there are."""
    if method == "lora":
        if "lora_mid" in held:
            return {"lora_down": ("r", "c", "1"), "lora_mid": ("r", "r", "*"), "lora_up": ("k", "r", "1")}
        return {"lora_down": ("r", "c", "*"), "lora_up": ("k", "r", "1")}
    if method == "loha":
        if "hada_t1" in held or "hada_t2" in held:
            sides = {f"hada_w{side}_{half}": ("r", size) for side in "12" for half, size in (("a", "k"), ("b", "c"))}
            return {"hada_t1": ("r", "r", "*"), "hada_t2": ("r", "r", "*")} | sides
        return {f"hada_w{side}_{half}": shape for side in "12" for half, shape in (("a", ("k", "r")), ("b", ("r", "d")))}
    if method == "lokr":
        first: dict[str, Shape] = {"lokr_w1": ("k1", "c1")} if "lokr_w1" in held else {"lokr_w1_a": ("k1", "r"), "lokr_w1_b": ("r", "c1")}
        if "lokr_w2" in held:
            return first | {"lokr_w2": ("k2", "c2", "*")}
        if "lokr_t2" in held:
            return first | {"lokr_t2": ("r", "r", "*"), "lokr_w2_a": ("r", "k2"), "lokr_w2_b": ("r", "c2")}
        return first | {"lokr_w2_a": ("k2", "r"), "lokr_w2_b": ("r", "d2")}
    if method == "glora":
        outer: dict[str, Shape] = {"a1": ("c", "r", "1"), "a2": ("r", "c", "1"), "b1": ("k", "r", "1")}
        return outer | ({"b2": ("r", "c", "1"), "bm": ("r", "r", "*")} if "bm" in held else {"b2": ("r", "c", "*")})
    return {}


def sizes(method: str, held: Mapping[str, np.ndarray]) -> Sizes:
    """Compare a module's parameters with what its method wants."""
    found = Sizes()
    for parameter, shape in wanted(method, held).items():
        if parameter not in held:
            found.faults.append(f"{KEYS[parameter]!r} is missing")
        else:
            _compare(parameter, held[parameter].shape, shape, found)
    for parameter, array in held.items():
        if not array.size:
            found.faults.append(f"{KEYS[parameter]!r} has no numbers, its shape is {array.shape}")
        elif array.ndim > 5:
            found.faults.append(f"{KEYS[parameter]!r} has {array.ndim} axes; a convolution has at most 5")
    letters, window = found.of, math.prod(found.window)
    if method == "lokr" and not found.faults:
        letters["k"] = letters["k1"] * letters["k2"]
        letters["d"] = letters["c1"] * letters.get("d2", letters.get("c2", 0) * window)
    elif "c" in letters:
        letters["d"] = letters["c"] * window
    return found


def _compare(parameter: str, got: tuple[int, ...], shape: Shape, found: Sizes) -> None:
    """Check one shape; what is new in it is learned."""
    fixed = tuple(letter for letter in shape if letter not in ("*", "1"))
    rest = got[len(fixed) :]
    said = ", ".join(f"{letter} = {found.of[letter]}" if letter in found.of else letter for letter in fixed)
    if len(got) < len(fixed) or (rest and len(fixed) == len(shape)) or (shape[-1] == "1" and any(size != 1 for size in rest)):
        found.faults.append(f"{KEYS[parameter]!r} must have shape ({said}{', 1, ...' if shape[-1] == '1' else ''}), found {got}")
        return
    if any(found.of.setdefault(letter, size) != size for letter, size in zip(fixed, got, strict=False)):
        found.faults.append(f"{KEYS[parameter]!r} must have shape ({said}{', ...' if len(shape) > len(fixed) else ''}), found {got}")
    if shape[-1] == "*":
        if found.window and rest != found.window:
            found.faults.append(f"{KEYS[parameter]!r} must have the window {found.window}, found {got}")
        found.window = rest
