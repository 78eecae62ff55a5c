"""LoHa, LoKr, LoCon with a core and GLoRA as plain LoRA, when a reader asks for it."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from loratk.errors import ConfigError, LoratkError, faults
from loratk.exchange import Base
from loratk.exchange.torch_layout import from_torch

from .lowrank import factors, kron_truncated, truncated
from .table import SPARSE

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
    made: dict[str, Module] = {}
    exact: Counter[tuple[str, int, int]] = Counter()
    notes: list[str] = []
    found: list[str] = []
    for name, (record, held) in modules.items():
        made[name] = record, held
        if why := _kept(record, held):
            notes += [f"{name!r} stays {record['method']}: {why}"] if record["method"] not in ("lora", "dora", "diff") else []
            continue
        try:
            made[name], lost = _lora(record, held, limit, _weight(name, record, base))
        except LoratkError as error:
            found.append(f"module {name!r} ({record['method']}): {error}")
            continue
        key = record["method"], record["rank"], made[name][0]["rank"]
        if lost is None:
            exact[key] += 1
        else:
            notes.append(f"{name!r}: {key[0]} of rank {key[1]} made LoRA of rank {key[2]}, {lost:.2%} of it lost")
    if found:
        raise ConfigError(faults("not everything can be made LoRA:", found))
    for (method, rank, new), count in exact.items():
        notes.append(f"{count} modules: {method} of rank {rank} made LoRA of rank {new}, exact but for rounding")
    return made, notes


def _kept(record: dict[str, Any], held: dict[str, np.ndarray]) -> str:
    """Why a module is left as it is, or ""."""
    if record["method"] not in ("loha", "lokr", "locon", "glora"):
        return "it is no update of low rank"
    if not SPARSE.isdisjoint(held):
        return "a sparse part is not of low rank"
    if "dora_scale" in held and held["dora_scale"].shape[0] != record["shape"][1]:
        return "its DoRA scale is one for each input"
    if record["method"] == "glora" and "kernel" in record:
        return "of a convolution it is not of low rank"
    return ""


def _weight(name: str, record: dict[str, Any], base: Base | None) -> np.ndarray | None:
    """The base's weight (k, d) for GLoRA."""
    if record["method"] != "glora":
        return None
    if base is None:
        raise ConfigError("it depends on the base's weight; give the base (--base)")
    weight = base.weight(name)
    if list(weight.shape) != record["shape"]:
        raise ConfigError(f"the base's weight acts as {list(weight.shape)}, it is for {record['shape']}")
    return weight.T


def _lora(record: dict[str, Any], held: dict[str, np.ndarray], limit: int, weight: np.ndarray | None) -> tuple[Module, float | None]:
    """A module as LoRA, and the share of its update that is lost: None where it is exact."""
    method, lost = record["method"], None
    parameters = {key: array for key, array in held.items() if key not in ("dora_scale", "bias")}
    if limit and method == "lokr":
        (left, right), lost = kron_truncated(parameters, limit)
    else:
        left, right = factors(method, parameters, weight)
        if limit and left.shape[1] > limit:
            (left, right), lost = truncated(left, right, limit)
    window = tuple(record.get("kernel", ()))
    rank = left.shape[1]
    facts, a, b = from_torch(right.reshape(rank, -1, *window), left.reshape(-1, rank, *[1] * len(window)))
    dtype = np.result_type(np.float32, *(array.dtype for array in parameters.values()))
    made = {"lora_A": a.astype(dtype), "lora_B": b.astype(dtype)} | ({"bias": held["bias"]} if "bias" in held else {})
    new = {key: value for key, value in record.items() if key not in ("dtypes", "orientation")} | facts
    new |= {"method": "lora", "alpha": record["scaling"] * rank, "scaling": record["scaling"]}
    new["alpha_source"] = f"{method} of rank {record['rank']}, alpha {record['alpha']:g} ({record['alpha_source']})"
    marked = {key: dtype for key, dtype in record.get("dtypes", {}).items() if key == "bias"}
    if "dora_scale" in held:
        new["method"], made["magnitude"] = "dora", held["dora_scale"].reshape(-1)
        if "dora_scale" in record.get("dtypes", {}):
            marked["magnitude"] = record["dtypes"]["dora_scale"]
    return (new | ({"dtypes": marked} if marked else {}), made), lost
