"""What adapter_config.json must say for PEFT to make the update of a state."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from loratk.errors import ConfigError, choices
from loratk.exchange import AdapterState, Base
from loratk.io.text import from_text

from . import others, shapes
from .config import ADALORA_KEPT, CHANGES, HELD, IMPORTS, KEPT, OTHERS
from .keys import BASE
from .targets import patterns, target_modules

FACTORS = ("lora", "dora")
"""The methods that PEFT's LORA is."""
WRITTEN = ("base_model_name_or_path", "task_type", "revision", "fan_in_fan_out", "lora_dropout", "inference_mode")
"""Options that are fields of the config."""
FLAGS = ("fan_in_fan_out", "inference_mode")


@dataclass
class Plan:
    """What is to be written of one state, with what keeps it from being written, and notes."""

    state: AdapterState
    base: Base | None
    tensors: dict[str, np.ndarray] = field(default_factory=dict)
    bfloat16: set[str] = field(default_factory=set)
    config: dict[str, Any] = field(default_factory=dict)
    found: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, name: str, array: np.ndarray, module: str, parameter: str) -> None:
        """A tensor by its name in the file."""
        if name in self.tensors:
            self.found.append(f"two tensors would be named {name!r}")
        self.tensors[name] = np.ascontiguousarray(array)
        if self.state.modules[module].get("dtypes", {}).get(parameter) == "bfloat16":
            self.bfloat16.add(name)


def fields(made: Plan, method: str, paths: Mapping[str, str], options: Mapping[str, Any]) -> dict[str, Any]:
    """adapter_config.json for PEFT's method; `paths` are those of the modules with PEFT's wrappers in them."""
    state, modules = made.state, made.state.modules
    foreign = {key for own in OTHERS.values() for key in own} - OTHERS.get(
        method, KEPT
    )  # of the method that an adapter had before it was made LoRA
    kept = {key: value for key, value in kept_fields(state).items() if key not in foreign}
    config = {"base_model_name_or_path": None, "revision": None, "task_type": None} | kept
    config |= {"peft_type": method, "inference_mode": True}
    whole = [module for module, record in modules.items() if record["method"] == "full" and not module.endswith(f".{BASE}")]
    saved = [module for module in whole if set(state.parameters()[module]) != {"bias"}]
    config["modules_to_save"] = sorted(saved) or None
    tokens = {module.rpartition(".")[0]: record["tokens"] for module, record in modules.items() if record["method"] == "trainable_tokens"}
    if tokens:
        config["trainable_token_indices"] = tokens
    targets = _targets(made, paths)
    config |= _lora_fields(made, config, saved) if method == "LORA" else _other_fields(made, method)
    config["target_modules"] = target_modules(targets, _names(made, targets))
    for key in WRITTEN:
        if options.get(key) is not None:
            config[key] = flag(key, options[key]) if key in FLAGS else options[key]
    if "lora_dropout" in config:
        config["lora_dropout"] = _dropout(config["lora_dropout"])
    return config


def kept_fields(state: AdapterState) -> dict[str, Any]:
    """The fields that a reader put into the metadata, but those that are made anew, or that nothing should be told."""
    found = {key.removeprefix("peft."): from_text(text) for key, text in state.metadata.items() if key.startswith("peft.")}
    made = (HELD | IMPORTS | set(CHANGES)) - ADALORA_KEPT
    return {key: value for key, value in found.items() if key not in made}


def _dropout(value: Any) -> float:
    try:
        dropout = float(value)
    except (TypeError, ValueError):
        dropout = math.nan
    if not 0 <= dropout < 1:
        raise ConfigError(f"The option lora_dropout must be a number in [0, 1), found {value!r}.")
    return dropout


def _targets(made: Plan, paths: Mapping[str, str]) -> list[str]:
    """The modules that target_modules has to mean: not parameters, and not what MultiheadAttention wraps itself."""
    aside = ("full", "bias", "trainable_tokens")
    return [
        module
        for module, record in made.state.modules.items()
        if record["method"] not in aside and "experts" not in record and BASE not in paths[module].split(".") and module != others.ROOT
    ]


def _names(made: Plan, targets: list[str]) -> list[str] | None:
    """The base's modules, if they are known."""
    if made.base is None:
        made.notes.append("target_modules could not be held against the base's modules, as no base was given")
        return None
    names = made.base.modules()
    if missing := sorted(set(targets) - set(names)):
        shown = choices(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        made.notes.append(f"the base has no weight for {shown}")
    return names


def _lora_fields(made: Plan, kept: Mapping[str, Any], saved: list[str]) -> dict[str, Any]:
    state, held = made.state, made.state.parameters()
    records = {module: record for module, record in state.modules.items() if record["method"] in FACTORS}
    ranks = {module: int(record["rank"]) for module, record in records.items()}
    rslora, alphas = _alphas(records)
    rank, alpha = (Counter(values.values()).most_common(1)[0][0] if values else 8 for values in (ranks, alphas))
    changed = {module for module, parameters in held.items() if "bias" in parameters and module not in saved}
    stacks = [module for module in records if "experts" in records[module]]
    return {
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": patterns(ranks, rank),
        "alpha_pattern": patterns(alphas, alpha),
        "use_rslora": rslora,
        "use_dora": any(record["method"] == "dora" for record in records.values()),
        "lora_bias": _has_lora_bias(made, records),
        "bias": "none" if not changed else "lora_only" if all(module.removesuffix(f".{BASE}") in records for module in changed) else "all",
        "lora_dropout": kept.get("lora_dropout", state.config.get("dropout", 0.0)),
        "fan_in_fan_out": kept.get("fan_in_fan_out", False),
        "init_lora_weights": kept.get("init_lora_weights", True),
        "exclude_modules": None,
        "layers_to_transform": None,
        "layers_pattern": None,
    } | ({"target_parameters": stacks} if stacks else {})


def _has_lora_bias(made: Plan, records: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether modules have a lora_bias; for PEFT, all or none have."""
    held = made.state.parameters()
    plain = {module for module in records if records[module].get("layer_type") != "embedding" and "experts" not in records[module]}
    biased = {module for module in plain if "lora_bias" in held[module]}
    if biased and biased != plain:
        made.found.append(f"PEFT has lora_bias in all modules or in none, and {choices(sorted(plain - biased)[:5])} have none")
    if biased and len(plain) < len(records):
        made.found.append("PEFT has no lora_bias beside adapters on embeddings or stacks of experts")
    return bool(biased)


def _alphas(records: Mapping[str, Mapping[str, Any]]) -> tuple[bool, dict[str, Any]]:
    """Whether scaling is alpha / sqrt(rank), and each module's alpha; where neither rule gives all scalings, the alphas that would."""
    for rslora in (False, True):
        alphas = {module: record["alpha"] for module, record in records.items()}
        by = {module: math.sqrt(record["rank"]) if rslora else record["rank"] for module, record in records.items()}
        if all(math.isclose(record["scaling"], alphas[module] / by[module], rel_tol=1e-9) for module, record in records.items()):
            return rslora, {module: _whole(alpha) for module, alpha in alphas.items()}
    return False, {module: _whole(record["scaling"] * record["rank"]) for module, record in records.items()}


def _whole(alpha: float) -> float | int:
    return int(alpha) if float(alpha).is_integer() and abs(alpha) < 1 << 53 else float(alpha)


def _other_fields(made: Plan, method: str) -> dict[str, Any]:
    """r, alpha and their patterns where the method has them, and what its tensors say; the rest of its fields is in the metadata."""
    records = {module: record for module, record in made.state.modules.items() if record["method"].upper() == method}
    records = {module: record for module, record in records.items() if module != others.ROOT or method != "VERA"}
    told = shapes.told(method, records, made.state.parameters(), kept_fields(made.state), made.found)
    records = {module: record for module, record in records.items() if "rank" in record}
    if not records:
        return told
    ranks = {module: int(record["rank"]) for module, record in records.items()}
    rank = Counter(ranks.values()).most_common(1)[0][0]
    if method == "ADALORA":
        return {"lora_alpha": _whole(next(iter(records.values()))["alpha"])}
    if method == "VERA":
        return {"r": rank, "save_projection": others.ROOT in made.state.modules} | told
    alphas = {module: _whole(record["scaling"] * record["rank"]) for module, record in records.items()}
    alpha = Counter(alphas.values()).most_common(1)[0][0]
    return {"r": rank, "alpha": alpha, "rank_pattern": patterns(ranks, rank), "alpha_pattern": patterns(alphas, alpha)} | told


def flag(name: str, value: Any) -> bool:
    """An option that is true or false, also as text. Raises ConfigError."""
    if isinstance(value, bool):
        return value
    if str(value).lower() in ("true", "false", "1", "0", "yes", "no"):
        return str(value).lower() in ("true", "1", "yes")
    raise ConfigError(f"The option {name} must be true or false, found {value!r}.")
