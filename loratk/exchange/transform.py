"""Changes of an adapter as plain data: some of its modules, other names, other dtypes. Each returns a new state."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from ..errors import ConfigError, choices, faults
from ..io.bfloat16 import to_bits, to_float32
from .configs import config_for
from .state import AdapterState

DTYPES = ("float16", "bfloat16", "float32", "float64")
Parameters = Mapping[str, np.ndarray]


def rebuilt(state: AdapterState, modules: Mapping[str, tuple[Mapping[str, Any], Parameters]]) -> AdapterState:
    """A state with these modules, each a record and its parameters, in place of its own.

    Its config, where it has one, stays if modules, ranks and scalings did, and is else made anew to fit.
    """
    tensors = {f"{module}.{key}" if module else key: array for module, (_, held) in modules.items() for key, array in held.items()}
    changed = replace(state, tensors=tensors, modules={module: dict(record) for module, (record, _) in modules.items()})
    if state.config.get("init") is not None and _has_first(state) and not _has_first(changed):
        state = replace(state, config={**state.config, "init": None})  # a model that took it would look for the first factors
        changed = replace(changed, config=state.config)
    if not state.config or _essence(changed) == _essence(state):
        return changed
    try:
        return replace(changed, config=config_for(changed))
    except ConfigError:  # whole modules, experts: what no config can say
        return replace(changed, config={})


def _has_first(state: AdapterState) -> bool:
    return any(name.rpartition(".")[2] == "initial_A" for name in state.tensors)


def _essence(state: AdapterState) -> dict[str, list[Any]]:
    """What a config says of each module."""
    return {module: [record.get(key) for key in ("method", "rank", "alpha", "scaling")] for module, record in state.modules.items()}


def _modules(state: AdapterState) -> dict[str, tuple[dict[str, Any], dict[str, np.ndarray]]]:
    return {module: (state.modules[module], held) for module, held in state.parameters().items()}


def select(states: Sequence[AdapterState], globs: Sequence[str]) -> list[AdapterState]:
    """The states with the modules alone whose dotted path one of the globs matches (`*` also across dots).

    Raises ConfigError that lists each glob without a match, and each adapter that nothing is left of.
    """
    paths = sorted({module for state in states for module in state.modules})
    found = [f"{glob!r} matches no module" for glob in globs if not any(fnmatchcase(path, glob) for path in paths)]
    chosen = []
    for state in states:
        kept = {path: held for path, held in _modules(state).items() if any(fnmatchcase(path, glob) for glob in globs)}
        if not kept and not found:
            found.append(f"nothing is left of adapter {state.name!r}")
        chosen.append((state, kept))
    if found:
        raise ConfigError(faults(f"These globs do not fit the modules ({_some(paths)}):", found))
    return [rebuilt(state, kept) for state, kept in chosen]


def rename(states: Sequence[AdapterState], names: Mapping[str, str]) -> list[AdapterState]:
    """The states with other module paths: a key of `names` is a path, or its beginning up to a dot; the longest that fits counts.

    Raises ConfigError that lists each key without effect and each two modules that would have one name.
    """
    paths = sorted({module for state in states for module in state.modules})
    given = {path: new_name(path, names) for path in paths}
    used = {key for key, _ in given.values()}
    found = [f"{key!r} is neither a module nor the beginning of one" for key in names if key not in used]
    owners: dict[str, list[str]] = {}
    for path, (_, new) in given.items():
        owners.setdefault(new, []).append(path)
    found += [f"{choices(olds)} would all be named {new!r}" for new, olds in owners.items() if len(olds) > 1]
    found += [f"{olds[0]!r} would have an empty name" for new, olds in owners.items() if not new and olds != [""]]
    if found:
        raise ConfigError(faults(f"These names do not fit the modules ({_some(paths)}):", found))
    return [rebuilt(state, {given[path][1]: held for path, held in _modules(state).items()}) for state in states]


def new_name(path: str, names: Mapping[str, str]) -> tuple[str | None, str]:
    """The key of `names` that decides about a path, or None, and the new path."""
    parts = path.split(".")
    for count in range(len(parts), 0, -1):
        key = ".".join(parts[:count])
        if key in names:
            return key, ".".join(part for part in (names[key], *parts[count:]) if part)
    return None, path


def _some(paths: Sequence[str]) -> str:
    return choices(paths) if len(paths) <= 12 else f"{choices(paths[:5])} and {len(paths) - 5} more"


def cast(states: Iterable[AdapterState], dtype: str) -> list[AdapterState]:
    """The states with all floating-point numbers in another dtype, one of DTYPES; bfloat16 is rounded to nearest, ties to even.

    Raises ConfigError that lists each tensor with a number too large for the dtype.
    """
    if dtype not in DTYPES:
        raise ConfigError(f"dtype must be one of {', '.join(DTYPES)}, found {dtype!r}.")
    found: list[str] = []
    changed = []
    for state in states:
        modules = {}
        for module, (record, held) in _modules(state).items():
            arrays = {key: cast_array(f"{module}.{key}", array, dtype, found) for key, array in held.items()}
            kept = {key: value for key, value in record.items() if key != "dtypes"}
            if dtype == "bfloat16" and (marked := {key: dtype for key, array in arrays.items() if array.dtype.kind == "f"}):
                kept["dtypes"] = marked
            modules[module] = kept, arrays
        changed.append(rebuilt(state, modules))
    if found:
        raise ConfigError(faults(f"Not everything fits in {dtype}:", found))
    return changed


def cast_array(name: str, array: np.ndarray, dtype: str, found: list[str]) -> np.ndarray:
    """An array in another dtype if it is of floating-point numbers; bfloat16 as float32. What does not fit is added to `found`."""
    if array.dtype.kind != "f":
        return array
    with np.errstate(over="ignore"):
        cast = round_bfloat16(array) if dtype == "bfloat16" else array.astype(dtype)
    if not np.isfinite(cast).all() and np.isfinite(array).all():
        found.append(f"{name!r} holds {float(np.abs(array).max()):.3g}, which is too large for {dtype}")
    return cast


def round_bfloat16(array: np.ndarray) -> np.ndarray:
    """The nearest numbers that bfloat16 has, ties to the even one, as float32."""
    with np.errstate(over="ignore"):
        single = np.asarray(array, np.float32, order="C")
    if array.dtype.itemsize > 4:
        single = _to_odd(array, single)
    return to_float32(to_bits(single))


def _to_odd(array: np.ndarray, single: np.ndarray) -> np.ndarray:
    """Float64 as float32, with a last bit of 1 where that is not exact, so that rounding once more is right (Boldo & Melquiond 2008)."""
    bits = single.view(np.uint32)
    inexact = ~np.isnan(array) & (single != array)
    bits = bits - (inexact & (np.abs(single) > np.abs(array)))  # towards zero
    return np.asarray(bits | inexact, np.uint32).view(np.float32)
