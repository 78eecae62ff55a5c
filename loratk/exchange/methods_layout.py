"""LoHa, LoKr, IA3, VeRA and sparse changes of loratk's own, input first, as torch's tools keep them, output first. Exact: axes are moved.

method  here                                                  there
loha    loha_A1, loha_A2 (d, r), loha_B1, loha_B2 (r, k)      hada_w1_b, hada_w2_b (r, d), hada_w1_a, hada_w2_a (k, r)
lokr    lokr_W1 (d1, k1); or lokr_A1 (d1, r), lokr_B1         lokr_w1 (k1, d1); or lokr_w1_b (r, d1), lokr_w1_a
        lokr_W2 (*window, d2, k2); or lokr_A2, lokr_B2        lokr_w2 (k2, d2, *window); or lokr_w2_b (r, d2 window), lokr_w2_a
ia3     ia3_outputs (k,), ia3_inputs (c,)                     ia3_l (k, 1), (1, c), of a convolution (1, k, 1, ..), (1, c, 1, ..)
        ia3_products (k,)                                     weight (k,), of a convolution (1, k, 1, ..), less 1, with on_input 0
vera    vera_d (r,), vera_b (k,), vera_seed ()                vera_lambda_d, vera_lambda_b; vera_A, vera_B apart, gain in lambda_d
        or shared_A (d, r), shared_B (r, k) for the seed      the same
sparse  sparse_index, sparse_values: places i k + j           the same: places j d + i

The d of a convolution counts as (window, channels) here, as (channels, window) there. The `orientation` of a record, "torch", tells
which it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np

from ..errors import FormatError
from .projection import gain, projection
from .state import AdapterState

Parameters = dict[str, np.ndarray]
MARKS = {"loha": "loha_", "lokr": "lokr_", "ia3": "ia3_", "vera": "vera_", "sparse": "sparse_"}
"""How the parameters of each method begin here."""
OURS = frozenset(
    {f"loha_{half}{side}" for half in "AB" for side in "12"} | {f"lokr_{part}{side}" for part in "WAB" for side in "12"}
    | {"ia3_outputs", "ia3_inputs", "ia3_products", "vera_d", "vera_b", "vera_seed", "shared_A", "shared_B"}
    | {"sparse_index", "sparse_values"}
)  # fmt: skip
ROOT = "root"
"""The module of VeRA's shared matrices."""


def is_own(record: Mapping[str, Any], held: Mapping[str, np.ndarray]) -> bool:
    """Whether a module is of one of these methods in loratk's own parameters."""
    return record["method"] in MARKS and record.get("orientation") != "torch" and not OURS.isdisjoint(held)


def to_torch(record: Mapping[str, Any], held: Mapping[str, np.ndarray]) -> tuple[dict[str, Any], Parameters, Parameters]:
    """A module of these methods -> its record, parameters, and what VeRA shares (of this module), as torch's tools keep them.

    Raises FormatError for parameters that are missing or do not fit each other.
    """
    window, (d, k) = tuple(record.get("kernel", ())), record.get("shape", (0, 0))
    own = {name: array for name, array in held.items() if name in OURS}
    try:
        moved, shared = CHANGED[record["method"]](own, d, k, window)
    except (ArithmeticError, LookupError, ValueError) as error:
        shapes = ", ".join(f"{name} {array.shape}" for name, array in sorted(own.items()))
        raise FormatError(f"its parameters do not fit each other, or a weight {d, k}: {shapes}") from error
    new = {key: value for key, value in record.items() if key not in ("options", "dtypes")} | {"orientation": "torch"}
    if record["method"] == "ia3" and "ia3_products" not in own:
        new["side"] = "inputs" if "ia3_inputs" in own else "outputs"
    if marks := {RENAMED.get(name, name): mark for name, mark in record.get("dtypes", {}).items() if name not in REDONE}:
        new["dtypes"] = marks
    return new, moved | {name: array for name, array in held.items() if name not in OURS}, shared


def torch_state(state: AdapterState) -> AdapterState:
    """A state with all these modules as torch's tools keep them; what VeRA shares is a module of its own, `root`.

    VeRA whose modules share no matrices (another rank or seed each, or the inputs of convolutions among them) stays as it is.
    """
    parameters = state.parameters()
    own = [module for module, held in parameters.items() if is_own(state.modules[module], held)]
    if not own:
        return state
    made = {}
    for module in own:
        with suppress(FormatError):  # who writes or merges it says what is wrong
            made[module] = to_torch(state.modules[module], parameters[module])
    shared = _together([parts[2] for parts in made.values() if parts[2]]) if ROOT not in parameters else None
    if shared is None:
        made = {module: parts for module, parts in made.items() if not parts[2]}
    modules = {module: made[module][0] if module in made else record for module, record in state.modules.items()}
    held = {module: made[module][1] if module in made else tensors for module, tensors in parameters.items()}
    if shared:
        modules[ROOT], held[ROOT] = {"method": "vera", "orientation": "torch"}, shared
    tensors = {f"{module}.{name}": array for module, arrays in held.items() for name, array in arrays.items()}
    return replace(state, tensors=tensors, modules=modules)


def _together(pairs: list[Parameters]) -> Parameters | None:
    """The matrices of which each pair is the first columns and the first rows; {} for no pairs, None where there are no such matrices."""
    if not pairs:
        return {}
    a, b = max((pair["vera_A"] for pair in pairs), key=lambda x: x.shape[1]), max((pair["vera_B"] for pair in pairs), key=len)
    same = all(
        len(pair["vera_A"]) == len(a) and np.array_equal(pair["vera_A"], a[:, : pair["vera_A"].shape[1]])
        and np.array_equal(pair["vera_B"], b[: len(pair["vera_B"])])
        for pair in pairs
    )  # fmt: skip
    return {"vera_A": a, "vera_B": b} if same else None


def rows_to_torch(a: np.ndarray, window: tuple[int, ...]) -> np.ndarray:
    """(d, r) with d as (window, channels) -> (r, d) with d as (channels, window)."""
    d, r = a.shape
    return np.ascontiguousarray(a.reshape(prod(window), -1, r).transpose(2, 1, 0).reshape(r, d))


def rows_from_torch(b: np.ndarray, window: tuple[int, ...]) -> np.ndarray:
    """The inverse."""
    r, d = b.shape
    return np.ascontiguousarray(b.reshape(r, -1, prod(window)).transpose(2, 1, 0).reshape(d, r))


def _loha(held: Parameters, d: int, k: int, window: tuple[int, ...]) -> tuple[Parameters, Parameters]:
    moved = {}
    for side in "12":
        moved[f"hada_w{side}_a"] = np.ascontiguousarray(held[f"loha_B{side}"].T)
        moved[f"hada_w{side}_b"] = rows_to_torch(held[f"loha_A{side}"], window)
    return moved, {}


def _lokr(held: Parameters, d: int, k: int, window: tuple[int, ...]) -> tuple[Parameters, Parameters]:
    moved = {}
    for side in "12":
        if (whole := held.get(f"lokr_W{side}")) is not None:
            axes = whole.ndim - 1, whole.ndim - 2, *range(whole.ndim - 2)
            moved[f"lokr_w{side}"] = np.ascontiguousarray(whole.transpose(axes))
        else:
            a = held[f"lokr_A{side}"]
            moved[f"lokr_w{side}_a"] = np.ascontiguousarray(held[f"lokr_B{side}"].T)
            moved[f"lokr_w{side}_b"] = rows_to_torch(a.reshape(-1, a.shape[-1]), a.shape[:-2])
    return moved, {}


def _ia3(held: Parameters, d: int, k: int, window: tuple[int, ...]) -> tuple[Parameters, Parameters]:
    ((name, factors),) = held.items()
    ones = [1] * len(window)
    if name == "ia3_products":
        shape = (1, -1, *ones) if window else (-1,)
        return {"weight": (factors - 1).reshape(shape), "on_input": np.array(0)}, {}
    return {"ia3_l": factors.reshape((1, -1, *ones) if window or name == "ia3_inputs" else (-1, 1))}, {}


def _vera(held: Parameters, d: int, k: int, window: tuple[int, ...]) -> tuple[Parameters, Parameters]:
    inner, outer = held["vera_d"], held["vera_b"]
    if "shared_A" in held:
        a, b = held["shared_A"], held["shared_B"]
    else:
        a, b = projection(int(held["vera_seed"]), d, k, len(inner), inner.dtype)
        inner = (inner * np.float64(gain(d, len(inner)))).astype(inner.dtype)
    return {"vera_lambda_d": inner, "vera_lambda_b": outer}, {"vera_A": rows_to_torch(a, window), "vera_B": np.ascontiguousarray(b.T)}


def _sparse(held: Parameters, d: int, k: int, window: tuple[int, ...]) -> tuple[Parameters, Parameters]:
    rows, columns = np.divmod(held["sparse_index"].astype(np.int64), k)
    place, channel = np.divmod(rows, d // prod(window))
    index = columns * d + channel * prod(window) + place
    order = np.argsort(index, kind="stable")
    return {"sparse_index": index[order], "sparse_values": held["sparse_values"][order]}, {}


CHANGED = {"loha": _loha, "lokr": _lokr, "ia3": _ia3, "vera": _vera, "sparse": _sparse}
REDONE = {"vera_d", "ia3_products"}
"""Parameters that become other numbers."""
RENAMED = (
    {f"loha_A{side}": f"hada_w{side}_b" for side in "12"} | {f"loha_B{side}": f"hada_w{side}_a" for side in "12"}
    | {f"lokr_{here}{side}": f"lokr_w{side}{there}" for side in "12" for here, there in (("W", ""), ("A", "_b"), ("B", "_a"))}
    | {"vera_b": "vera_lambda_b", "ia3_outputs": "ia3_l", "ia3_inputs": "ia3_l"}
)  # fmt: skip
