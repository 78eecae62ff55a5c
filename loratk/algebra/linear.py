"""What a module adds, as what can be summed: pairs of factors for its weight, arrays for what lies beside; and back to a module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..errors import ConfigError, LoratkError, choices
from ..exchange.factors import Pair, update_pairs
from ..exchange.format import Base
from ..exchange.joining import joined
from ..exchange.others import KNOWN
from ..exchange.plain import as_lora, as_other, is_shared, shared_of
from ..exchange.state import AdapterState
from ..exchange.transform import DTYPES, cast_array, rebuilt

Record = Mapping[str, Any]
Module = tuple[dict[str, Any], dict[str, np.ndarray]]
FACTS = ("method", "rank", "alpha", "scaling", "alpha_source", "dtypes", "orientation")
"""What of a record is made anew; the rest says how the weight lies, and stays."""
WHOLE = ("full", "diff")
FACTORS = ("lora_A", "lora_B")
BESIDE = ("bias", "lora_bias")
BLOCKS = "peft_groups"
"""In a record: the number of blocks on the diagonal of lora_B, outside of which it is 0 and has to stay so."""


@dataclass(frozen=True, eq=False)
class Linear:
    """A module whose effect is proportional to its numbers.

    kind: "lora", "diff" or "full". pairs: the parts of its update in float64, the scaling in B; none where it changes no weight. arrays:
    biases (lora_bias with its scaling), and the parameters of `full` and `diff`, in float64 where they are floating-point numbers.
    stored: the dtype of each parameter, "bfloat16" among them.
    """

    kind: str
    record: Record
    pairs: list[Pair]
    arrays: dict[str, np.ndarray]
    stored: dict[str, str] = field(default_factory=dict)


def linear_of(state: AdapterState, module: str, held: Mapping[str, np.ndarray], base: Base | None = None) -> Linear:
    """A module as something that adds. Methods that are exactly products of factors (LoHa, LoKr, ...) count as them.

    Raises ConfigError for a module that is not linear (DoRA), or needs a base, or whose method is not known.
    """
    record, held = joined(state.modules[module], held)
    marked = record.get("dtypes", {})
    stored = {key: marked.get(key, array.dtype.name) for key, array in held.items()}
    if record["method"] in WHOLE:
        return Linear(record["method"], record, [], {key: _wide(array) for key, array in held.items()}, stored)
    if record["method"] in KNOWN:
        record, held = _factors(state, module, held, base)
        stored = dict.fromkeys(held, promoted(["float32", *(name for name in stored.values() if name in DTYPES)])) | {
            key: dtype for key, dtype in stored.items() if key in BESIDE
        }
    if "magnitude" in held:
        raise ConfigError(
            "a DoRA magnitude is not linear: sums of such adapters mean nothing; loratk.lora_of with its base makes LoRA of it"
        )
    if strange := held.keys() - {*FACTORS, *BESIDE}:
        raise ConfigError(
            f"loratk cannot add parameters {choices(strange)} of the method {record['method']!r}; loratk.lora_of may make LoRA of it"
        )
    pairs = pairs_of((record, held))
    scale = {"bias": 1.0, "lora_bias": float(record.get("scaling", 1.0))}
    arrays = {key: held[key].astype(np.float64) * scale[key] for key in BESIDE if key in held}
    return Linear("lora", record, pairs, arrays, stored)


def _factors(state: AdapterState, module: str, held: Mapping[str, np.ndarray], base: Base | None) -> Module:
    """A module of another method as LoRA in float64."""
    record = state.modules[module]
    try:
        shared = {key: _wide(array) for key, array in shared_of(state).items()}
        known = base if base is not None and module in frozenset(base.modules()) else None
        other = as_other(record, {key: _wide(array) for key, array in held.items()}, module, known, shared=shared, d=inputs_of(state))
        if not other.low or other.magnitude is not None:
            raise ConfigError("its update depends on the base's weight, or is of no low rank")
        return as_lora(other)[0]
    except LoratkError as error:
        raise ConfigError(
            f"its method {record['method']!r} has no exact factors: {error}; loratk.lora_of makes the nearest LoRA"
        ) from error


def inputs_of(state: AdapterState) -> int:
    """d of the only module of VeRA, which is that of the shared matrices; 0 where there are several."""
    users = [path for path, held in state.parameters().items() if state.modules[path]["method"] == "vera" and "vera_lambda_b" in held]
    shared = shared_of(state)
    return int(shared["vera_A"].shape[-1]) if "vera_A" in shared and len(users) == 1 else 0


def linear_modules(state: AdapterState, found: list[str]) -> dict[str, Linear]:
    """All modules of an adapter as `linear_of` gives them; what cannot be is added to `found`, with the adapter and the module named."""
    modules = {}
    for module, held in state.parameters().items():
        if is_shared(state.modules[module], held):
            continue
        try:
            modules[module] = linear_of(state, module, held)
        except LoratkError as error:
            found.append(f"adapter {state.name!r}, module {module!r}: {error}")
    return modules


def packed(
    record: Record, pairs: Sequence[Pair], arrays: Mapping[str, np.ndarray], dtypes: Mapping[str, str], source: str, found: list[str]
) -> Module:
    """A record and parameters of plain LoRA with these parts: alpha = rank, scaling 1.

    dtypes: of each parameter; what does not fit into it is added to `found`. source: what is said of alpha.
    """
    new = {key: value for key, value in record.items() if key not in FACTS}
    held = dict(arrays)
    if pairs:
        held |= _joined(record, pairs)
        rank = held["lora_A"].shape[-1]
        new |= {"method": "lora", "rank": rank, "alpha": float(rank), "scaling": 1.0, "alpha_source": source}
    elif record["method"] in WHOLE:
        new |= {key: record[key] for key in ("method", "orientation") if key in record}
    else:
        new = {"method": "bias"}
        if "lora_bias" in held:  # the same thing without factors to share a scaling with
            held["bias"] = held.pop("lora_bias") + held.get("bias", 0.0)
            dtypes = {"bias": promoted([dtypes[key] for key in BESIDE if key in dtypes])}
    return stored_as(new, held, dtypes, found)


def stored_as(record: Record, held: Mapping[str, np.ndarray], dtypes: Mapping[str, str], found: list[str]) -> Module:
    """A module with its parameters in these dtypes, bfloat16 as float32 with a mark; what does not fit is added to `found`."""
    new = {key: value for key, value in record.items() if key != "dtypes"}
    arrays = {key: cast_array(key, array, dtypes[key], found) if key in dtypes else array for key, array in held.items()}
    if marked := {key: "bfloat16" for key, dtype in dtypes.items() if dtype == "bfloat16" and key in arrays}:
        new["dtypes"] = marked
    return new, arrays


def finished(state: AdapterState, modules: Mapping[str, Module], name: str, metadata: Mapping[str, str]) -> AdapterState:
    """A state with these modules in place of its own: without VeRA's shared matrices where no module needs them any more."""
    vera = [path for path, pair in modules.items() if pair[0]["method"] == "vera"]
    if all(is_shared(*modules[path]) for path in vera):
        modules = {path: pair for path, pair in modules.items() if path not in vera}
    methods = [{record["method"] for record in records} for records in (state.modules.values(), [record for record, _ in modules.values()])]
    config = state.config if methods[0] == methods[1] else {key: value for key, value in state.config.items() if key != "options"}
    return rebuilt(replace(state, name=name, metadata=dict(metadata), config=config, version=""), modules)


def pairs_of(module: tuple[Record, Mapping[str, np.ndarray]]) -> list[Pair]:
    """The parts of a module's update, as `factors.update_pairs`, and for blocks on the diagonal of lora_B one each; [] without factors."""
    record, held = module
    if not held.keys() >= set(FACTORS):
        return []
    pairs = update_pairs(record, held)
    if BLOCKS not in record:
        return pairs
    ((a, b),), count = pairs, record[BLOCKS]
    if not isinstance(count, int) or count < 1 or len(b) % count or b.shape[1] % count:
        raise ConfigError(f"{BLOCKS} must be a number that divides rank and outputs, {len(b)} and {b.shape[1]}, found {count!r}")
    rows = [np.split(part, count, axis=1) for part in np.split(b, count)]
    return [(part, rows[number][number]) for number, part in enumerate(np.split(a, count, axis=1))]


def parts_of(record: Record) -> int:
    """Of how many parts the rank counts together: groups of a convolution, blocks of lora_B."""
    return int(record.get("groups", record.get(BLOCKS, 1)))


def _joined(record: Record, pairs: Sequence[Pair]) -> dict[str, np.ndarray]:
    """The factors of parts, without a scaling: the inverse of `pairs_of`."""
    stack = np.stack if "experts" in record else np.hstack
    a, b = stack([a for a, _ in pairs]), [b for _, b in pairs]
    if BLOCKS not in record:
        return {"lora_A": a, "lora_B": stack(b)}
    whole = np.zeros((sum(map(len, b)), sum(part.shape[1] for part in b)))
    row = column = 0
    for part in b:
        whole[row : row + len(part), column : column + part.shape[1]] = part
        row, column = row + len(part), column + part.shape[1]
    return {"lora_A": a, "lora_B": whole}


def promoted(names: Sequence[str]) -> str:
    """The dtype that holds numbers of all these: itself for one, float32 for bfloat16 with float16."""
    kinds = set(names)
    return kinds.pop() if len(kinds) == 1 else np.result_type(*("float32" if name == "bfloat16" else name for name in kinds)).name


def _wide(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float64) if array.dtype.kind == "f" else array
