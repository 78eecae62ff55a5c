"""Modules of other methods (LoHa, LoKr, AdaLoRA, VeRA, ...) as plain LoRA: exact where the update is of low rank, else the nearest."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np

from ..errors import ConfigError, FormatError, LoratkError, faults
from .factors import nearest_pair
from .format import Base
from .joining import joined
from .lowrank import Pair, kron_truncated, truncated
from .methods_layout import is_own, to_torch
from .others import KNOWN, OF_VERA, Other, no_weight
from .state import AdapterState
from .torch_layout import from_torch
from .transform import rebuilt

Module = tuple[dict[str, Any], dict[str, np.ndarray]]
CORES = ("lora_mid", "hada_t1", "lokr_t2", "lokr_w2", "bm")
"""Parameters whose axes after the second are the window of a convolution."""
BESIDE = ("dora_scale", "bias", "bias_indices", "bias_size", "on_input")
"""Parameters that do not decide in which dtype the factors are."""


def plain_lora(
    states: Sequence[AdapterState],
    *,
    base: Base | None = None,
    rank: int | None = None,
    which: Callable[[AdapterState], Collection[str]] = lambda state: state.modules,
) -> tuple[list[AdapterState], list[str]]:
    """The states with modules of other methods as LoRA, or DoRA where a magnitude belongs to them, and notes that tell how near.

    What is of low rank is exact but for rounding (LoHa of rank r has r^2), and with `rank` the best of that rank. What is not (IA3, a DoRA
    scale of inputs) is the nearest of `rank`, or of its own, by singular values. `which`: the paths to change. A method that is not known
    is left as it is. Raises ConfigError that lists each module that needs a base, or more numbers than are sensible.
    """
    found: list[str] = []
    notes: list[str] = []
    known = frozenset(base.modules()) if base is not None else frozenset()
    changed = []
    for state in states:
        chosen, modules, exact = set(which(state)), {}, Counter[tuple[str, Any, int]]()
        parameters = state.parameters()
        shared = shared_of(state)
        vera = _of_vera(state)
        for module, held in parameters.items():
            record = state.modules[module]
            modules[module] = record, held
            if module not in chosen or record["method"] not in KNOWN or is_shared(record, held):
                continue
            try:
                other = as_other(record, held, module, base if module in known else None, shared=shared, d=_inputs(state))
                modules[module], lost = as_lora(other, rank)
            except LoratkError as error:
                lacks = f" (the base '{base.path}' has no module of that name)" if base is not None and module not in known else ""
                found.append(f"adapter {state.name!r}, module {module!r} ({record['method']}): {error}{lacks}")
                continue
            key = record["method"], record.get("rank"), modules[module][0]["rank"]
            if lost is None:
                exact[key] += 1
            else:
                notes.append(f"adapter {state.name!r}, module {module!r}: {made(*key)}, {lost:.2%} of it lost")
        notes += [f"adapter {state.name!r}, {count} module{'s' * (count != 1)}: {exactly(*key)}" for key, count in exact.items()]
        if base is not None:
            _with_biases(modules, parameters, base)
        if vera and chosen.issuperset(vera):
            modules = {module: pair for module, pair in modules.items() if not is_shared(*pair)}
        changed.append(rebuilt(state, modules))
    if found:
        raise ConfigError(faults("not everything can be made LoRA:", found))
    return changed, notes


def _with_biases(modules: dict[str, Module], before: Mapping[str, Mapping[str, np.ndarray]], base: Base) -> None:
    """Where some modules now change a bias (IA3 of outputs), no change for the others that have one: a config says it of all or of none."""
    if all("bias" in before[module] or "bias" not in held for module, (_, held) in modules.items()):
        return
    known = frozenset(base.modules())
    for module, (_, held) in modules.items():
        if "lora_B" in held and "bias" not in held and module in known and (bias := base.bias(module)) is not None:
            held["bias"] = np.zeros(bias.shape, held["lora_B"].dtype)


def made(method: str, rank: int | None, new: int) -> str:
    """That a method was made LoRA, for a note."""
    return f"{method}{f' of rank {rank}' if rank is not None else ''} made LoRA of rank {new}"


def exactly(method: str, rank: int | None, new: int) -> str:
    """That a method was made LoRA with nothing lost, for a note."""
    return f"{made(method, rank, new)}, exact but for rounding"


def as_other(
    record: Mapping[str, Any],
    held: Mapping[str, np.ndarray],
    module: str,
    base: Base | None = None,
    *,
    shared: Mapping[str, np.ndarray] | None = None,
    d: int = 0,
) -> Other:
    """What a module's method makes its update of, loratk's own parameters turned to torch's order.

    The window of a convolution is told by its tensors, and before them by the base.

    `d`: the inputs, where neither the record nor the base tells (VeRA). Raises ConfigError where the base has another shape.
    """
    if is_own(record, held):
        record, held, own = to_torch(record, held)
        shared = own or shared
    Other(record, held).check_names()
    window = tuple(record.get("kernel", next((held[name].shape[2:] for name in CORES if name in held), ())))
    sizes = list(record.get("shape", ()))
    shape = base.shape(module) if base is not None else ()
    if base is not None and len(shape) > 1:
        order = getattr(base, "order", "")
        outputs = len(held["vera_lambda_b"]) if record["method"] == "vera" else outputs_of(shape, order)
        sizes = sizes or [math.prod(shape) // max(outputs, 1), outputs]
        if math.prod(shape) != math.prod(sizes) or sizes[1] not in shape:
            raise ConfigError(f"it is for a weight that acts as {sizes}, the base's has shape {shape}; is it the right base?")
        window = window_of(shape, sizes[1], order)
    if record["method"] == "vera" and not sizes:
        if not d:
            raise ConfigError("how many inputs it has is known from the base alone; give it (--base)")
        sizes = [d, len(held["vera_lambda_b"])]
    whole = {**record, "shape": sizes} if sizes else record
    if base is None:
        return Other(whole, held, window, shared or {})
    weight, bias = partial(base.weight, module), partial(base.bias, module)
    return Other(whole, held, window, shared or {}, lambda: output_first(weight(), window), bias)


def outputs_of(shape: Sequence[int], order: str) -> int:
    """k of a weight of this shape."""
    return shape[-1] if order == "input-first" else shape[0]


def window_of(shape: Sequence[int], k: int, order: str) -> tuple[int, ...]:
    """The window of a weight of this shape: the axes after outputs and inputs, or before them if they come last."""
    last = order == "input-first" or (order != "output-first" and shape[0] != k)
    return tuple(shape[:-2] if last else shape[2:])


def output_first(matrix: np.ndarray, window: Sequence[int]) -> np.ndarray:
    """A matrix (d, k) with d as (window, channels): (k, d) with d as (channels, window)."""
    k = matrix.shape[1]
    return np.moveaxis(matrix.reshape(math.prod(window), -1, k), (2, 1), (0, 1)).reshape(k, -1)


def input_first(matrix: np.ndarray, window: Sequence[int]) -> np.ndarray:
    """The inverse of `output_first`."""
    k = len(matrix)
    return np.moveaxis(matrix.reshape(k, -1, math.prod(window)), (0, 1), (2, 1)).reshape(-1, k)


def as_lora(other: Other, limit: int | None = None) -> tuple[Module, float | None]:
    """A module as LoRA or DoRA, of its exact rank or at most `limit`, and the share of its update that is lost: None where it is exact."""
    window = other.window
    with other.fitting():
        (left, right), lost = _factors(other, limit)
        rank = left.shape[1]
        table = other.record.get("layer_type") == "embedding"
        facts, a, b = from_torch(right.reshape(rank, -1, *window), left.reshape(-1, rank, *[1] * len(window)), table=table)
    numbers = (array.dtype for name, array in other.held.items() if name not in BESIDE and array.dtype.kind == "f")
    dtype = np.result_type(np.float32, *numbers)
    held = {"lora_A": a.astype(dtype), "lora_B": b.astype(dtype)}
    record = {key: value for key, value in other.record.items() if key not in ("dtypes", "orientation", "options", "side")} | facts
    if (want := other.record.get("shape")) is not None and facts["shape"] != list(want):
        raise FormatError(f"its record says that the weight acts as {list(want)}, its parameters make {facts['shape']}")
    scaling = other.scaling if other.low else 1.0
    record |= {"method": "lora", "alpha": scaling * rank, "scaling": scaling, "alpha_source": _source(other.record)}
    marks = other.record.get("dtypes", {})
    kept = {name: marks[name] for name in ("bias",) if name in marks}
    if "bias" in other.held:
        held["bias"] = other.held["bias"]
    if (change := other.bias()) is not None:
        held["bias"] = (change + held.get("bias", 0.0)).astype(dtype)
        kept = {}
    if (magnitude := other.magnitude) is not None:
        record["method"], held["magnitude"] = "dora", other.held["dora_scale"].reshape(magnitude.shape)
        kept |= {"magnitude": marks["dora_scale"]} if "dora_scale" in marks else {}
    return (record | ({"dtypes": kept} if kept else {}), held), lost


def _factors(other: Other, limit: int | None) -> tuple[Pair, float | None]:
    """left (k, R), right (R, d), and the share that is lost."""
    if other.low:
        if limit and other.method == "lokr":
            return kron_truncated(other.wide, limit)
        left, right = other.pair()
        return truncated(left, right, limit) if limit and left.shape[1] > limit else ((left, right), None)
    rank = limit or other.record.get("rank")
    if rank is None:
        base = "" if other.base_weight is not no_weight else ", and give the base's weights (--base)"
        raise ConfigError(f"its update is of no low rank; say which rank to make it (--bake-rank N){base}")
    update = other.update()
    left, right = nearest_pair(update, min(rank, *update.shape))
    whole = float(np.linalg.norm(update))
    return (left, right), float(np.linalg.norm(update - left @ right)) / whole if whole else 0.0


def _source(record: Mapping[str, Any]) -> str:
    if "alpha" not in record:
        return f"made of {record['method']}"
    source = f" ({record['alpha_source']})" if record.get("alpha_source") else ""
    return f"{record['method']} of rank {record.get('rank', 'unknown')}, alpha {record['alpha']:g}{source}"


def as_factors(state: AdapterState, module: str, base: Base | None = None, *, d: int = 0) -> Module:
    """A module of another method by the factors of its update, where it has some; any other, and what needs more, as it is.

    First factors and a learned gain are joined to the factors.
    """
    record, held = joined(state.modules[module], state.parameters()[module])
    if record["method"] in KNOWN and not is_shared(record, held):
        with suppress(LoratkError):  # it needs the base, or would be too large
            other = as_other(record, held, module, base, shared=shared_of(state), d=d or _inputs(state))
            if other.low and other.magnitude is None:
                return as_lora(other)[0]
    return record, held


def _of_vera(state: AdapterState) -> list[str]:
    """The modules with an update of VeRA."""
    parameters = state.parameters()
    return [name for name, record in state.modules.items() if record["method"] == "vera" and not is_shared(record, parameters[name])]


def _inputs(state: AdapterState) -> int:
    """d of the only module of VeRA, which is that of the shared matrices; 0 where there are several."""
    shared = shared_of(state)
    return shared["vera_A"].shape[-1] if "vera_A" in shared and len(_of_vera(state)) == 1 else 0


def shared_modules(state: AdapterState) -> list[str]:
    """The module that holds VeRA's two matrices for all modules of an adapter, if there is one."""
    return [module for module, held in state.parameters().items() if is_shared(state.modules[module], held)]


def shared_of(state: AdapterState) -> dict[str, np.ndarray]:
    """VeRA's two matrices; {} where there are none."""
    parameters = state.parameters()
    return {key: array for module in shared_modules(state) for key, array in parameters[module].items()}


def is_shared(record: Mapping[str, Any], held: Mapping[str, np.ndarray]) -> bool:
    """Whether a module is VeRA's shared matrices, and no update itself."""
    return record["method"] == "vera" and not OF_VERA.isdisjoint(held)
