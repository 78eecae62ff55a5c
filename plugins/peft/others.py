"""PEFT's other methods as named tensors, as they lie in the file, with what of rank, alpha and shape can be told."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from .keys import PARAMETERS, Key, spell
from .patterns import Matcher

if TYPE_CHECKING:
    from loratk.exchange import AdapterState

    from .reading import Adapter

Shapes = Mapping[str, tuple[int, ...]]
RENAMED = {"lora_A": "adalora_A", "lora_B": "adalora_B", "lora_E": "adalora_E"}
"""AdaLoRA's factors by other names, as lora_A and lora_B are those of an update without the singular values lora_E."""
ROOT = "root"
"""The module of VeRA's shared matrices."""
BESIDE = ("full", "diff", "bias", "trainable_tokens")
"""Methods of records that go with any method of PEFT's."""
NEEDED: Mapping[str, list[set[str]]] = {
    "ADALORA": [{"lora_A", "lora_B", "lora_E"}],
    "VERA": [{"vera_lambda_b", "vera_lambda_d"}],
    "LOHA": [{"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", *core} for core in ((), ("hada_t1", "hada_t2"))],
    "LOKR": [
        first | second
        for first in ({"lokr_w1"}, {"lokr_w1_a", "lokr_w1_b"})
        for second in ({"lokr_w2"}, {"lokr_w2_a", "lokr_w2_b"}, {"lokr_w2_a", "lokr_w2_b", "lokr_t2"})
    ],
    "IA3": [{"ia3_l"}],
}  # fmt: skip
"""By method the sets of parameters that make a module whole."""


LAYERS: Mapping[str, tuple[str, ...]] = {
    "ADALORA": ("linear",), "VERA": ("linear",), "LOHA": ("linear", "conv1d", "conv2d"), "LOKR": ("linear", "conv1d", "conv2d"),
    "IA3": ("linear", "conv2d", "conv3d"),
}  # fmt: skip
"""By method the types of layers that PEFT has it for."""


def read(adapter: Adapter, factors: Mapping[Key, str]) -> list[str]:
    """Read all modules of a method other than LoRA; returns their paths."""
    method = adapter.config.method
    held: dict[str, dict[str, str]] = {}
    for key, source in factors.items():
        held.setdefault(key.module, {})[key.parameter] = source
    shared = held.pop("", {})
    for module, sources in held.items():
        _module(adapter, method, module, sources)
    if method == "VERA":
        _shared(adapter, shared)
    elif shared:
        adapter.found += [f"tensor {source!r} has no module in its name" for source in shared.values()]
    return list(held)


def _module(adapter: Adapter, method: str, module: str, sources: dict[str, str]) -> None:
    sources.pop("ranknum", None)  # AdaLoRA's rank once more
    names = set(sources)
    if names not in NEEDED[method]:
        nearest = min(NEEDED[method], key=lambda names: len(names ^ set(sources)))
        allowed = [adapter.missing(spell(module, name), f"{method} needs it") for name in sorted(nearest - names)]
        for name in sorted(names - nearest):
            adapter.unexpected(sources[name], f"{method} has no place for it beside the module's others")
        if allowed and all(allowed):
            adapter.notes.append(f"module {module!r} was left out: {', '.join(sorted(nearest - names))} may be missing, and is")
        return
    shapes = {name: adapter.file.shape(source) for name, source in sources.items()}
    facts = FACTS[method](shapes) if all(shapes.values()) else None
    if facts is None or not all(size for shape in shapes.values() for size in shape):
        listed = ", ".join(f"{name} {shape}" for name, shape in sorted(shapes.items()))
        adapter.found.append(f"module {module!r}: the shapes of its tensors do not fit each other: {listed}")
        return
    record: dict[str, Any] = {"method": method.lower(), "orientation": "torch"} | {key: value for key, value in facts.items() if value}
    adapter.modules[module] = record
    if method in ("LOHA", "LOKR"):
        record |= adapter.alpha(module, facts["rank"] or adapter.config.rank_of(module) or 8)  # two whole matrices have no rank
    elif method == "ADALORA":
        record |= _adalora_alpha(adapter)
    elif method == "IA3" and (len(shapes["ia3_l"]) == 2 or "feedforward_modules" in adapter.config.values):
        record["side"] = _side(adapter, module, shapes["ia3_l"])
    for name, source in sources.items():
        array = adapter.file.array(source)
        if array.dtype.kind != "f":
            adapter.found.append(f"tensor {source!r} must hold floating-point numbers, found {adapter.file.dtype(source)}")
        adapter.add(module, RENAMED.get(name, name), array, source)


def _adalora_alpha(adapter: Adapter) -> dict[str, Any]:
    """AdaLoRA divides by the rank it began with, + 1e-5, and takes alpha as that where it is not positive."""
    alpha, first = (float(adapter.config.get(name, usual)) for name, usual in (("lora_alpha", 8), ("init_r", 12)))
    alpha = alpha if alpha > 0 else first
    return {"alpha": alpha, "scaling": alpha / (first + 1e-5), "alpha_source": f"lora_alpha of {adapter.config.where}, by its init_r"}


def _shared(adapter: Adapter, shared: Mapping[str, str]) -> None:
    """VeRA's two matrices, of which every module takes the corner it needs."""
    if not shared and not adapter.config.get("save_projection", True):
        adapter.notes.append("VeRA's shared matrices are not in the file, but to be drawn by PyTorch from projection_prng_key")
        return
    for name in ("vera_A", "vera_B"):
        if name not in shared:
            adapter.missing(f"base_model.{name}", "save_projection promises it")
    if shared:
        adapter.modules[ROOT] = {"method": "vera", "orientation": "torch"}
    for name, source in shared.items():
        adapter.add(ROOT, name, adapter.file.array(source), source)


def _adalora(shapes: Shapes) -> dict[str, Any] | None:
    a, b, e = (shapes[name] for name in ("lora_A", "lora_B", "lora_E"))
    if not len(a) == len(b) == 2 or b[1] != a[0] or e != (a[0], 1):
        return None
    return {"layer_type": "linear", "shape": [a[1], b[0]], "rank": a[0]}


def _vera(shapes: Shapes) -> dict[str, Any] | None:
    b, d = shapes["vera_lambda_b"], shapes["vera_lambda_d"]
    return {"rank": d[0]} if len(b) == len(d) == 1 else None


def _loha(shapes: Shapes) -> dict[str, Any] | None:
    w1a, w1b, w2a, w2b = (shapes[f"hada_{name}"] for name in ("w1_a", "w1_b", "w2_a", "w2_b"))
    if any(len(shape) != 2 for shape in (w1a, w1b, w2a, w2b)) or w1a != w2a or w1b != w2b:
        return None
    if "hada_t1" not in shapes:
        return {"shape": [w1b[1], w1a[0]], "rank": w1b[0]} if w1a[1] == w1b[0] else None
    t1, rank = shapes["hada_t1"], w1a[0]
    if t1 != shapes["hada_t2"] or len(t1) < 3 or not rank == w1b[0] == t1[0] == t1[1]:
        return None
    return {"shape": [w1b[1] * math.prod(t1[2:]), w1a[1]], "rank": rank}


def _lokr(shapes: Shapes) -> dict[str, Any] | None:
    first, second = _lokr_side(shapes, "lokr_w1", None), _lokr_side(shapes, "lokr_w2", shapes.get("lokr_t2"))
    if first is None or second is None or (first[2] and second[2] and first[2] != second[2]):
        return None
    return {"shape": [first[1] * second[1], first[0] * second[0]], "rank": first[2] or second[2]}


def _lokr_side(shapes: Shapes, name: str, core: tuple[int, ...] | None) -> tuple[int, int, int] | None:
    """Outputs, inputs and rank (0 of a whole matrix) of one side of a Kronecker product."""
    if name in shapes:
        shape = shapes[name]
        return (shape[0], math.prod(shape[1:]), 0) if len(shape) >= 2 else None
    a, b = shapes[f"{name}_a"], shapes[f"{name}_b"]
    if len(a) != 2 or len(b) != 2:
        return None
    if core is None:
        return (a[0], b[1], b[0]) if a[1] == b[0] else None
    if len(core) < 3 or not a[0] == b[0] == core[0] == core[1]:
        return None
    return a[1], b[1] * math.prod(core[2:]), a[0]


def _side(adapter: Adapter, module: str, shape: tuple[int, ...]) -> str:
    """Whether IA3's factors are for "inputs" or "outputs": of a matrix by their shape, of a convolution by feedforward_modules."""
    if len(shape) == 2 and shape != (1, 1):
        return "inputs" if shape[0] == 1 else "outputs"
    return "inputs" if feedforward(adapter.config.get("feedforward_modules"), module, adapter.config.matcher) else "outputs"


def feedforward(patterns: Any, module: str, matcher: Matcher) -> bool:
    """Whether PEFT takes a module for the second layer of a feed-forward block: the end of its name, also within a word, or a whole one."""
    if isinstance(patterns, str):
        return matcher.matches(patterns, module)
    return any(module.endswith(pattern) for pattern in patterns or ())


def _ia3(shapes: Shapes) -> dict[str, Any] | None:
    shape = shapes["ia3_l"]
    return {} if len(shape) >= 2 and sum(size != 1 for size in shape) <= 1 else None


FACTS: Mapping[str, Callable[[Shapes], dict[str, Any] | None]] = {
    "ADALORA": _adalora, "VERA": _vera, "LOHA": _loha, "LOKR": _lokr, "IA3": _ia3
}  # fmt: skip
"""By method what the shapes of a module's tensors tell, {} for nothing; None where they do not fit each other."""


def unheld(state: AdapterState) -> list[str]:
    """The modules of other methods that a folder cannot have: those of methods that PEFT lacks, and all beside a second method."""
    held = state.parameters()
    records = {module: record for module, record in state.modules.items() if record["method"] not in BESIDE}
    methods = {"lora" if record["method"] == "dora" else record["method"] for record in records.values()}
    return [
        module for module, record in records.items()
        if record["method"] not in ("lora", "dora") and (len(methods) > 1 or not _fits(module, record, held[module]))
    ]  # fmt: skip


def _fits(module: str, record: Mapping[str, Any], held: Mapping[str, np.ndarray]) -> bool:
    try:
        return record["method"].upper() in NEEDED and bool(write(record, module, held))
    except ValueError:
        return False


def write(record: Mapping[str, Any], module: str, held: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors of one module by their names in a PEFT file. Raises ValueError for what PEFT's method does not have."""
    method = record["method"].upper()
    if (kind := record.get("layer_type", "linear")) not in LAYERS[method]:
        raise ValueError(f"PEFT has no {method} for a layer of the type {kind!r}")
    back = {new: old for old, new in RENAMED.items()}
    named = {back.get(name, name): array for name, array in held.items()}
    if module == ROOT and set(named) <= {"vera_A", "vera_B"}:
        return {f"base_model.{name}": array for name, array in named.items()}
    if not {"vera_seed", "shared_A"}.isdisjoint(named):
        raise ValueError("its random matrices are not those that the other modules share, for its rank or seed is another")
    if unknown := set(named) - set(PARAMETERS[method]):
        raise ValueError(f"PEFT's {method} has no parameter {', '.join(map(repr, sorted(unknown)))}")
    if set(named) not in NEEDED[method]:
        raise ValueError(f"PEFT's {method} needs {', '.join(sorted(min(NEEDED[method], key=lambda names: len(names ^ set(named)))))}")
    return {spell(module, name): array for name, array in named.items()}
