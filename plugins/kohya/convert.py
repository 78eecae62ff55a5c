"""LoHa, LoKr, LoCon with a core and GLoRA as plain LoRA, when a reader asks for it."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from loratk.errors import ConfigError, LoratkError, faults
from loratk.exchange import Base
from loratk.exchange.others import LOW, Other
from loratk.exchange.plain import as_lora as module_as_lora
from loratk.exchange.plain import as_other, exactly, made

Module = tuple[dict[str, Any], dict[str, np.ndarray]]


def rank_limit(value: object) -> int | None:
    """The option `factor`: None for "no", 0 for "yes" (exact), else the rank that LoRA may have. Raises ConfigError."""
    text = str(value).lower()
    if text in ("no", "false"):
        return None
    if text in ("yes", "true"):
        return 0
    if text.isascii() and text.isdecimal() and len(text) < 9 and int(text) > 0:
        return int(text)
    raise ConfigError(f"the option factor must be yes (exact), no, or the largest rank to make, found {value!r}")


def as_lora(modules: dict[str, Module], limit: int, base: Base | None) -> tuple[dict[str, Module], list[str]]:
    """The modules with everything that is low-rank as LoRA, of its exact rank or, with a limit above 0, the best of that; and notes.

    Raises ConfigError that lists each module whose factors would be too large, and each GLoRA without the base that it is made of.
    """
    whole: dict[str, Module] = {}
    exact: Counter[tuple[str, int, int]] = Counter()
    notes: list[str] = []
    found: list[str] = []
    known = frozenset(base.modules()) if base is not None else frozenset()
    for name, (record, held) in modules.items():
        whole[name] = record, held
        if record["method"] in ("lora", "dora", "diff"):
            continue
        try:
            other = as_other(record, held, name, base if name in known else None)
            if why := _kept(other):
                notes.append(f"{name!r} stays {record['method']}: {why}")
                continue
            whole[name], lost = module_as_lora(other, limit)
        except LoratkError as error:
            found.append(f"module {name!r} ({record['method']}): {error}")
            continue
        key = record["method"], record["rank"], whole[name][0]["rank"]
        if lost is None:
            exact[key] += 1
        else:
            notes.append(f"{name!r}: {made(*key)}, {lost:.2%} of it lost")
    if found:
        raise ConfigError(faults("not everything can be made LoRA:", found))
    notes += [f"{count} module{'s' * (count != 1)}: {exactly(*key)}" for key, count in exact.items()]
    return whole, notes


def _kept(other: Other) -> str:
    """Why a module is left as it is, or ""."""
    if other.low:
        return ""
    if "bias_values" in other.held:
        return "a sparse part is not of low rank"
    if other.method in LOW and "dora_scale" in other.held:
        return "its DoRA scale is one for each input"
    return "of a convolution it is not of low rank" if other.method == "glora" else "it is no update of low rank"
