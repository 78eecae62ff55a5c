"""The config of adapters that come from elsewhere: what a LoraConfig must say for a model to have just these modules."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping
from math import isclose, sqrt
from typing import Any

from ..errors import ConfigError, choices, faults
from .state import AdapterState

_KEPT = ("dropout", "module_dropout", "seed")
_KEPT_WITH_METHOD = ("rank_dropout", "max_norm", "init")


def config_for(state: AdapterState, *, among: Collection[str] = ()) -> dict[str, Any]:
    """A LoraConfig as a dict, under which a model gets the adapter of a state: targets are exact paths, each with its rank and alpha.

    The commonest rank, alpha and options are the config's own, the rest are patterns. `among`: further paths the model has, which the
    targets must not mean. Dropout and seed are those of the state's own config, where it has one, and of the same method the init too.
    Raises ConfigError for what no LoraConfig can say: several methods, whole modules, experts.
    """
    records = {module: record for module, record in state.modules.items() if record["method"] not in ("bias", "full", "diff")}
    methods = sorted({record["method"] for record in records.values()})
    found = [f"module {module!r} replaces or changes a whole module" for module in state.modules if _whole(state.modules[module])]
    found += [f"module {module!r} is a stack of experts" for module, record in records.items() if "experts" in record]
    if len(methods) != 1:
        found.append(f"one config has one method, found {choices(methods)}")
    if found:
        raise ConfigError(faults(f"no LoraConfig can describe the adapter {state.name!r}:", found))
    names = {module: exact_pattern(module, {*among, *records}) for module in records}
    ranks = {module: int(record.get("rank", 1)) for module, record in records.items()}
    rslora, alphas = _alphas(records, ranks)
    rank, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
    config = {
        "rank": rank,
        "alpha": alpha,
        "targets": list(names.values()),
        "rank_pattern": {names[module]: value for module, value in ranks.items() if value != rank},
        "alpha_pattern": {names[module]: value for module, value in alphas.items() if value != alpha},
        "method": methods[0],
        "rslora": rslora,
    }
    same = state.config.get("method", methods[0]) == methods[0]
    kept = (*_KEPT, *(_KEPT_WITH_METHOD if same else ()))
    config |= {key: state.config[key] for key in kept if key in state.config}
    return config | _options(records, names, state.config.get("options", {}) if same else {}) | {"bias": _bias(state, records)}


def _options(records: Mapping[str, Mapping[str, Any]], names: Mapping[str, str], usual: Mapping[str, Any]) -> dict[str, Any]:
    """The commonest options of the method, and for other modules a pattern; `usual` for records that say none."""
    told = {module: dict(record.get("options", usual)) for module, record in records.items()}
    common = max(told.values(), key=list(told.values()).count)
    patterns = {names[module]: {"options": options} for module, options in told.items() if options != common}
    return ({"options": common} if common else {}) | ({"layer_pattern": patterns} if patterns else {})


def _whole(record: Mapping[str, Any]) -> bool:
    return record["method"] in ("full", "diff")


def exact_pattern(path: str, paths: Collection[str]) -> str:
    """A target that matches this path and none of the others."""
    plain = path and path != "all-linear" and not path.startswith("re:") and not any(character in path for character in "*?[")
    return path if plain and not any(other.endswith("." + path) for other in paths) else "re:" + re.escape(path)


def _alphas(records: Mapping[str, Mapping[str, Any]], ranks: Mapping[str, int]) -> tuple[bool, dict[str, float]]:
    """Whether scaling is alpha / sqrt(rank), and each module's alpha; where neither rule gives all scalings, the alphas that would."""
    scaled = {module: record for module, record in records.items() if "scaling" in record}
    alphas = {module: float(records[module].get("alpha", ranks[module])) for module in records}
    for rslora in (False, True):
        divisors = {module: sqrt(ranks[module]) if rslora else ranks[module] for module in scaled}
        if all(isclose(record["scaling"], alphas[module] / divisors[module], rel_tol=1e-12) for module, record in scaled.items()):
            return rslora, alphas
    return False, alphas | {module: record["scaling"] * ranks[module] for module, record in scaled.items()}


def _bias(state: AdapterState, adapted: Collection[str]) -> str:
    """Which biases there are: none, those of adapted modules, or others too."""
    biased = {key.rpartition(".")[0] for key in state.tensors if key.rpartition(".")[2] in ("bias", "lora_bias")}
    if not biased:
        return "none"
    mine = state.config.get("bias", "none")
    beside = [module for module in biased if not any(path == module or path.startswith(f"{module}.") for path in adapted)]
    return mine if mine != "none" else "all" if beside else "lora_only"
