"""Groups of parameters with options of their own, as optimisers take them, checked as a whole."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from ..autograd import Tensor
from ..errors import ConfigError, choices, faults
from .module import Module
from .parameter import Parameter

Check = Callable[[str, Any], Any]


@dataclass(frozen=True)
class Group:
    """Parameters that one set of options updates."""

    parameters: tuple[Parameter, ...]
    options: Mapping[str, Any]


def number(name: str, value: Any, *, low: float = 0.0, high: float = math.inf) -> float:
    """A finite number in [low, high). Raises ConfigError."""
    try:
        found = math.nan if isinstance(value, (bool, str)) else float(value)
    except (TypeError, ValueError):
        found = math.nan
    if not low <= found < high:
        below = f" and below {high:g}" if high < math.inf else ""
        raise ConfigError(f"{name} must be a finite number of at least {low:g}{below}, found {value!r}.")
    return found


def listed(parameters: Any, who: str) -> list[Any]:
    """What a caller handed in as several parameters, as a list. Raises ConfigError."""
    if isinstance(parameters, Module):
        raise ConfigError(f"{who} takes parameters, found the module {type(parameters).__name__}; pass its trainable().")
    if isinstance(parameters, (Tensor, Mapping)) or not isinstance(parameters, Iterable):
        raise ConfigError(f"{who} takes a list of parameters, found a {type(parameters).__name__}; put it into a list.")
    return list(parameters)


def make_groups(parameters: Any, defaults: Mapping[str, Any], check: Check, who: str) -> tuple[Group, ...]:
    """Groups out of parameters, or out of dicts with "params" and options. Raises ConfigError, with every fault of the parameters."""
    items = listed(parameters, who)
    if not items:
        raise ConfigError(f"{who} got no parameters to train: is everything frozen, or was an iterator used up before?")
    if not any(isinstance(item, Mapping) for item in items):
        items = [{"params": items}]
    groups: list[Group] = []
    seen: dict[int, str] = {}
    found: list[str] = []
    for i, item in enumerate(items):
        where = f"group {i}"
        if not isinstance(item, Mapping):
            raise ConfigError(f"{who} takes parameters or groups, not both: {where} is a {type(item).__name__}, others are dicts.")
        if unknown := item.keys() - defaults.keys() - {"params"}:
            raise ConfigError(f"{where} of {who} has unknown keys {choices(unknown)}. Known: {choices(['params', *defaults])}.")
        if "params" not in item:
            raise ConfigError(f"{where} of {who} has no 'params'.")
        own = listed(item["params"], f"{where} of {who}")
        found += [] if own else [f"{where} is empty"]
        for j, parameter in enumerate(own):
            place = f"{where}, parameter {j}"
            if not isinstance(parameter, Parameter):
                found.append(f"{place} is a {type(parameter).__name__}, not a Parameter")
            elif parameter.frozen:
                found.append(f"{place}, of shape {parameter.shape}, is frozen; unfreeze() it or leave it out")
            elif id(parameter) in seen:
                found.append(f"{place}, of shape {parameter.shape}, is {seen[id(parameter)]} again")
            else:
                seen[id(parameter)] = place
        options = {name: check(name, item.get(name, default)) for name, default in defaults.items()}
        groups.append(Group(tuple(own), MappingProxyType(options)))
    if found:
        raise ConfigError(faults(f"{who} cannot train these parameters:", found))
    return tuple(groups)
