"""LoHa, LoKr, IA3 and VeRA of other tools as the methods that train here, the inverse of `exchange.methods_layout`, or why not."""

from collections.abc import Mapping
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np

from ..errors import FormatError, LoratkError, choices, faults
from ..exchange import AdapterState
from ..exchange.methods_layout import rows_from_torch
from ..exchange.others import Other
from ..exchange.plain import is_shared, shared_of
from .methods.lokr import lokr_shapes
from .targets import Candidate

Arrays = Mapping[str, np.ndarray]
Module = tuple[dict[str, Any], dict[str, np.ndarray]]
WHOLE = ("full", "diff")
BAKE = "; export it with --bake, and load the plain LoRA that makes of it"


def trainable(state: AdapterState, candidates: Mapping[str, Candidate]) -> AdapterState:
    """A state whose modules have the parameters of the methods here; `candidates` are the model's layers by name.

    Raises FormatError that lists each module whose method does not train here, or only in a simpler form.
    """
    records, parameters = state.modules, state.parameters()
    others = [module for module, record in records.items() if record.get("orientation") == "torch" and record["method"] not in WHOLE]
    if not others:
        return state
    shared, modules, found = shared_of(state), {}, []
    for module, held in parameters.items():
        if module not in others:
            modules[module] = records[module], held
        elif not is_shared(records[module], held):
            try:
                modules[module] = _module(records[module], held, shared, candidates.get(module))
            except FormatError as error:
                found.append(f"module {module!r}: {error}")
    if found:
        raise FormatError(faults("not all of its methods train in loratk:", found))
    tensors = {f"{module}.{name}": array for module, (_, held) in modules.items() for name, array in held.items()}
    config: dict[str, Any] = {key: state.config[key] for key in ("dropout", "module_dropout", "seed") if key in state.config}
    return replace(state, config=config, modules={module: record for module, (record, _) in modules.items()}, tensors=tensors)


def _module(record: dict[str, Any], held: Arrays, shared: Arrays, candidate: Candidate | None) -> Module:
    method = record["method"]
    if method not in MADE:
        raise FormatError(f"its method {method!r} does not train here{BAKE}")
    if candidate is None:
        raise FormatError("this model has no layer of that name that can have an adapter")
    d, k = candidate.layer_type.shape(candidate.module)
    window = candidate.layer_type.window(candidate.module)
    if record.get("shape", [d, k]) != [d, k]:
        raise FormatError(f"it is for a weight that acts as {record['shape']}, the model's acts as {[d, k]}")
    own, options = MADE[method](record, held, shared, (*window, d // prod(window), k))
    facts = {key: value for key, value in record.items() if key not in ("orientation", "dtypes", "side")}
    facts |= {"shape": [d, k]} | ({"kernel": list(window)} if window else {}) | ({"options": options} if options else {})
    return facts, own | ({"bias": held["bias"]} if "bias" in held else {})


def _exactly(method: str, held: Arrays, names: set[str]) -> None:
    """Raises FormatError where there is anything but these parameters, and a bias."""
    if more := set(held) - names - {"bias"}:
        raise FormatError(f"its {method} has {choices(sorted(more))} besides, with which it does not train here{BAKE}")
    if lacks := names - set(held):
        raise FormatError(f"its {method} lacks {choices(sorted(lacks))}")


def _loha(record: Mapping[str, Any], held: Arrays, shared: Arrays, weight: tuple[int, ...]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    _exactly("LoHa", held, {f"hada_w{side}_{half}" for side in "12" for half in "ab"})
    own = {}
    for side in "12":
        own[f"loha_A{side}"] = rows_from_torch(held[f"hada_w{side}_b"], weight[:-2])
        own[f"loha_B{side}"] = np.ascontiguousarray(held[f"hada_w{side}_a"].T)
    return own, {}


def _lokr(record: Mapping[str, Any], held: Arrays, shared: Arrays, weight: tuple[int, ...]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    halves = {side: f"lokr_w{side}_a" in held or f"lokr_w{side}_b" in held for side in "12"}
    names = {name for side in "12" for name in ([f"lokr_w{side}_a", f"lokr_w{side}_b"] if halves[side] else [f"lokr_w{side}"])}
    _exactly("LoKr", held, names)
    own, window = {}, weight[:-2]
    for side in "12":
        place = window if side == "2" else ()
        if halves[side]:
            b = rows_from_torch(held[f"lokr_w{side}_b"], place)
            own[f"lokr_A{side}"] = b.reshape(*place, -1, b.shape[1])
            own[f"lokr_B{side}"] = np.ascontiguousarray(held[f"lokr_w{side}_a"].T)
        else:
            whole = held[f"lokr_w{side}"].reshape(*held[f"lokr_w{side}"].shape[:2], *place)
            own[f"lokr_W{side}"] = np.ascontiguousarray(whole.transpose(*range(2, whole.ndim), 1, 0))
    shapes = {name: array.shape for name, array in own.items()}
    d1, k1 = shapes["lokr_A1"][0] if halves["1"] else shapes["lokr_W1"][0], (own["lokr_B1"] if halves["1"] else own["lokr_W1"]).shape[1]
    both: dict[str, Any] = {"decompose_both": True} if halves["1"] else {}
    full: dict[str, Any] = {"full_matrix": True} if not halves["2"] else {}
    tried: list[dict[str, Any]] = [{}, both, full, both | full, {"split": [d1, k1]} | both | full]
    try:
        return own, next(options for options in tried if lokr_shapes(weight, int(record["rank"]), options) == shapes)
    except (StopIteration, LoratkError) as error:
        raise FormatError(f"its LoKr does not make the weight {weight}: {shapes}{BAKE}") from error


def _ia3(record: Mapping[str, Any], held: Arrays, shared: Arrays, weight: tuple[int, ...]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    window, c, k = weight[:-2], *weight[-2:]
    if "ia3_l" in held:
        _exactly("IA3", held, {"ia3_l"})
        other = Other({**record, "shape": [prod(window) * c, k]}, held, window)
        try:
            side, factors = "outputs" if other.on_bias else "inputs", held["ia3_l"].reshape(-1)
        except LoratkError as error:
            raise FormatError(f"{error}") from error
    else:
        _exactly("IA3", held, {"weight", "on_input"})
        side, factors = "inputs" if held["on_input"].any() else "products", held["weight"].reshape(-1) + held["weight"].dtype.type(1)
    return {f"ia3_{side}": factors}, {} if side == "outputs" else {"side": side}


def _vera(record: Mapping[str, Any], held: Arrays, shared: Arrays, weight: tuple[int, ...]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    _exactly("VeRA", held, {"vera_lambda_d", "vera_lambda_b"})
    d, k = prod(weight[:-1]), weight[-1]
    inner, outer = held["vera_lambda_d"], held["vera_lambda_b"]
    if not shared:
        raise FormatError("VeRA's shared matrices are not there, and only PyTorch draws them; save the adapter with save_projection=True")
    a, b = shared["vera_A"], shared["vera_B"]
    if a.shape[1] < d or len(b) < k or len(a) != len(inner) or b.shape[1] != len(inner):
        raise FormatError(f"it needs matrices ({len(inner)}, {d}) and ({k}, {len(inner)}), VeRA's shared ones are {a.shape} and {b.shape}")
    own = {"vera_d": inner, "vera_b": outer, "shared_B": np.ascontiguousarray(b[:k].T)}
    return own | {"shared_A": rows_from_torch(a[:, :d], weight[:-2])}, {"shared": "kept"}


def _adalora(
    record: Mapping[str, Any], held: Arrays, shared: Arrays, weight: tuple[int, ...]
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    _exactly("AdaLoRA", held, {"adalora_A", "adalora_B", "adalora_E"})
    a, b = rows_from_torch(held["adalora_A"], weight[:-2]), np.ascontiguousarray(held["adalora_B"].T)
    return {"lora_A": a, "lora_E": held["adalora_E"].reshape(-1), "lora_B": b}, {}


MADE = {"adalora": _adalora, "loha": _loha, "lokr": _lokr, "ia3": _ia3, "vera": _vera}
