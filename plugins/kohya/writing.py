"""A state as the tensors of a file: keys, shapes, and one alpha for each module that leaves readers nothing else to multiply."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from loratk.errors import ConfigError, FormatError, faults
from loratk.exchange import AdapterState
from loratk.exchange.others import KNOWN
from loratk.exchange.portable import scaled
from loratk.exchange.tensors import marked
from loratk.exchange.torch_layout import to_torch
from loratk.io.bfloat16 import to_bits, to_float32

from .fused import joined
from .lycoris import lycoris
from .names import Namer
from .table import KEYS, KINDS

BAKE = "; --bake makes LoRA of it"
AS_THEY_ARE = {kind.method: kind for kind in KINDS if kind.method not in ("lora", "diff")} | {
    "locon": KINDS[0], "dora_in": KINDS[0], "boft": next(kind for kind in KINDS if kind.method == "oft"),
}  # fmt: skip
"""Methods whose parameters are written as the record has them, and the kind that says which there may be."""


@dataclass
class Packed:
    """The tensors of a file, which of them go out as bfloat16, and what there is to say."""

    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    bfloat16: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)
    methods: set[str] = field(default_factory=set)
    scales: set[tuple[int, float]] = field(default_factory=set)

    def add(self, name: str, record: Mapping[str, Any], tensors: Mapping[str, tuple[str, np.ndarray]]) -> None:
        """Take a module's tensors: key suffix and array by the parameter whose mark counts."""
        names = {parameter: f"{name}.{KEYS[key]}" for parameter, (key, _) in tensors.items()}
        self.arrays |= {names[parameter]: array for parameter, (_, array) in tensors.items()}
        self.bfloat16 |= marked(record, names)

    def alpha(self, name: str, value: float, like: tuple[np.dtype, bool]) -> None:
        """Add an alpha in the dtype of a module's factors if that has the number, else in float32."""
        dtype, half = like
        with np.errstate(over="ignore"):
            fits = float(np.array(value).astype(dtype)) == value
        if half and float(to_float32(to_bits(np.array(value, np.float32)))) == value:
            self.bfloat16.add(f"{name}.alpha")
            dtype = np.dtype(np.float32)
        elif half or not fits:
            dtype = np.result_type(dtype, np.float32)
        array = np.array(value).astype(dtype)
        if float(array) != value:
            self.notes.append(f"the alpha {value!r} of {name!r} is rounded to {dtype}")
        self.arrays[f"{name}.alpha"] = array


def pack(state: AdapterState, prefix: str | None) -> Packed:
    """The tensors of a state. Raises ConfigError with everything that such a file cannot say."""
    packed, found = Packed(), []
    parameters = state.parameters()
    modules = joined({module: lycoris(state.modules[module], held) for module, held in parameters.items()})
    if len(modules) < len(parameters):
        packed.notes.append(f"{len(parameters)} modules make {len(modules)}: blocks of fused projections are put together")
    namer = Namer(list(modules), prefix)
    for module, (record, held) in modules.items():
        wrong = list(_faults(record, held))
        if not wrong:
            try:
                _pack_module(packed, namer.name(module, record), record, held)
            except FormatError as error:
                wrong = [str(error)]
        found += [f"module {module!r}: {line}" for line in wrong]
    if found:
        raise ConfigError(faults(f"such a file cannot hold the adapter {state.name!r} as it is:", found))
    packed.notes += namer.check()
    return packed


def unheld(state: AdapterState) -> list[str]:
    """The modules of other methods whose parameters have no place in such a file."""
    plain = ("lora", "dora", "bias", "diff", "full")
    parameters = state.parameters()
    own = {module: lycoris(record, parameters[module]) for module, record in state.modules.items()}
    return [module for module, (record, held) in own.items() if record["method"] not in plain and _faults(record, held)]


def _faults(record: Mapping[str, Any], held: Mapping[str, np.ndarray]) -> list[str]:
    method, found = record["method"], []
    torch = record.get("orientation") == "torch"
    if record.get("scaling") == 0:
        found.append("its scaling is 0, and readers take an alpha of 0 for the rank; --portable multiplies it into lora_B")
    if record.get("groups", 1) != 1:
        found.append("it is a convolution in groups")
    if method in ("lora", "dora"):
        strange = set(held) - {"lora_A", "lora_B", "magnitude", "bias", "lora_bias"}
        return found + [f"its parameter {name!r} has no place" for name in sorted(strange)]
    if method == "bias":
        return found
    if method == "full":
        return [*found, "it replaces a whole module; such files hold differences alone"]
    if method == "diff":
        return found + [f"its parameter {name!r} has no place" for name in sorted(set(held) - {"weight", "bias"})]
    if method not in AS_THEY_ARE:
        return [*found, f"its method {method!r} has no place{BAKE if method in KNOWN else ''}"]
    if not torch:
        return [*found, f"its parameters ({method}) must be as torch keeps them (orientation 'torch')"]
    strange = AS_THEY_ARE[method].faults({"diff_b" if key == "bias" else key for key in held})
    return found + [f"{fault}{BAKE if method in KNOWN else ''}" for fault in strange]


def _pack_module(packed: Packed, name: str, record: Mapping[str, Any], held: Mapping[str, np.ndarray]) -> None:
    method = record["method"]
    if method == "lokr" and {"lokr_w1", "lokr_w2"} <= held.keys() and record.get("scaling", 1.0) != 1.0:
        record, held = _unscaled(record, held)
        packed.notes.append(f"the scaling of {name!r} is multiplied into 'lokr_w1': where both factors are whole, readers take it as 1")
    packed.methods.add(method)
    if method in ("bias", "diff"):
        norm = "weight" in held and held["weight"].ndim == 1
        keys = {"weight": "w_norm" if norm else "diff", "bias": "b_norm" if norm else "diff_b"}
        packed.add(name, record, {key: (keys[key], array) for key, array in held.items()})
        return
    if method in ("lora", "dora"):
        down, up = to_torch(record, held["lora_A"], held["lora_B"])
        tensors = {"lora_A": ("lora_down", down), "lora_B": ("lora_up", up)}
        if "magnitude" in held:
            tensors["magnitude"] = "dora_scale", held["magnitude"].reshape(-1, *[1] * (up.ndim - 1))
        main = "lora_A"
    else:
        tensors = {key: (key, array) for key, array in held.items() if key != "bias"}
        main = next((key for key, array in held.items() if array.dtype.kind == "f"), "")
    packed.add(name, record, tensors)
    _pack_bias(packed, name, record, held)
    if "alpha" in record and method != "ia3":
        like = held[main].dtype, record.get("dtypes", {}).get(main) == "bfloat16"
        value = _alpha(record)
        packed.alpha(name, value, like)
        if "rank" in record:
            packed.scales.add((record["rank"], value))


def _unscaled(record: Mapping[str, Any], held: Mapping[str, np.ndarray]) -> tuple[Mapping[str, Any], Mapping[str, np.ndarray]]:
    """LoKr with whole factors, its scaling in the first of them."""
    dtypes = dict(record.get("dtypes", {}))
    first = scaled(held["lokr_w1"], float(record["scaling"]), dtypes, "lokr_w1")
    rank = record.get("rank", 1)
    return {**record, "rank": rank, "alpha": float(rank), "scaling": 1.0, "dtypes": dtypes}, {**held, "lokr_w1": first}


def _pack_bias(packed: Packed, name: str, record: Mapping[str, Any], held: Mapping[str, np.ndarray]) -> None:
    """What is added to the base's bias: `bias`, and `lora_bias` times the scaling."""
    if "bias" not in held and "lora_bias" not in held:
        return
    if "lora_bias" in held:
        total = held["lora_bias"].astype(np.float64) * record["scaling"] + held.get("bias", 0.0)
        packed.add(name, {}, {"bias": ("diff_b", total.astype(np.result_type(held["lora_bias"].dtype, np.float32)))})
        packed.notes.append(f"the lora_bias of {name!r}, times its scaling, is written as 'diff_b'")
    else:
        packed.add(name, record, {"bias": ("diff_b", held["bias"])})


def _alpha(record: Mapping[str, Any]) -> float:
    """The alpha that a reader divides by the rank: the record's own, or with other rules (rslora) the one that gives the scaling."""
    alpha, rank, scaling = float(record["alpha"]), record.get("rank"), record.get("scaling")
    if rank is None or scaling is None or alpha / rank == scaling:
        return alpha
    return float(scaling) * int(rank)
