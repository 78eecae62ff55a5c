"""adapter_config.json: what it says of ranks and alphas, checked; nothing that it names is ever imported."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from loratk.errors import FormatError, StoreError
from loratk.io import strict_json
from loratk.io.text import to_text

from .patterns import Matcher

NAME = "adapter_config.json"
LARGEST = 16_000_000
METHODS = ("LORA", "ADALORA", "VERA", "LOHA", "LOKR", "IA3")
"""The methods that loratk reads, as `peft_type` spells them."""

HELD = {
    "peft_type", "r", "lora_alpha", "alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "lora_bias", "bias",
    "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save", "target_parameters",
    "trainable_token_indices", "inference_mode",
}  # fmt: skip
"""Fields that a state holds in other ways, or that are worked out anew on writing."""
ADALORA_KEPT = {"r", "rank_pattern"}
"""Of these the ones that mean something else for AdaLoRA: a rank nobody uses, and which singular values were kept."""
KEPT = {
    "alora_invocation_tokens", "base_model_name_or_path", "corda_config", "ensure_weight_tying", "eva_config", "fan_in_fan_out",
    "init_lora_weights", "layer_replication", "loftq_config", "lora_dropout", "lora_ga_config", "megatron_config", "peft_version",
    "qalora_group_size", "revision", "task_type", "velora_config",
}  # fmt: skip
"""Further fields of PEFT 0.21's LoRA: kept in the metadata, as `peft.<field>`, and written again."""
OTHERS = {
    "ADALORA": {"target_r", "init_r", "tinit", "tfinal", "deltaT", "beta1", "beta2", "orth_reg_weight", "total_step"},
    "VERA": {"projection_prng_key", "save_projection", "vera_dropout", "d_initial", "init_weights", "fan_in_fan_out"},
    "LOHA": {"rank_dropout", "module_dropout", "use_effective_conv2d", "init_weights"},
    "LOKR": {"rank_dropout", "module_dropout", "use_effective_conv2d", "init_weights", "decompose_both", "decompose_factor",
             "rank_dropout_scale"},
    "IA3": {"feedforward_modules", "fan_in_fan_out", "init_ia3_weights"},
}  # fmt: skip
"""Fields of the other methods."""
IMPORTS = {"auto_mapping", "megatron_core"}
"""Fields that name code to import. They are left out, and loratk imports nothing."""
CHANGES = {
    "use_qalora": "pools the input of the factors",
    "use_bdlora": "makes the factors block-diagonal",
    "kasa_config": "changes the update by the base's singular values",
    "monteclora_config": "draws the factors at random",
    "arrow_config": "chooses between adapters for each token",
}
"""Fields by which the factors mean another update than LoRA's, and how."""

USUAL = {
    "ensure_weight_tying": False, "fan_in_fan_out": False, "init_lora_weights": True, "lora_dropout": 0.0, "qalora_group_size": 16
}  # fmt: skip
"""Values that tell nothing, and are not kept."""

_TEXT = "a text", lambda value: isinstance(value, str)
_FLAG = "true or false", lambda value: isinstance(value, bool)
_TEXTS = "a list of texts", lambda value: isinstance(value, list) and all(isinstance(item, str) for item in value)
_TARGETS = "a text or a list of texts", lambda value: isinstance(value, str) or _TEXTS[1](value)
_SIZE = "a whole number from 1 up", lambda value: _is_whole(value) and value >= 1
_NUMBER = "a finite number", lambda value: _is_number(value)
_INDICES = "a whole number or a list of them", lambda value: _is_whole(value) or _wholes(value)
_TOKENS = (
    "a list of whole numbers, or such lists by module",
    lambda value: _wholes(value) or (isinstance(value, dict) and all(_wholes(item) for item in value.values())),
)
_RANKS = "whole numbers from 1 up by pattern", lambda value: isinstance(value, dict) and all(_SIZE[1](item) for item in value.values())
_ALPHAS = "finite numbers by pattern", lambda value: isinstance(value, dict) and all(_is_number(item) for item in value.values())
_BIAS = "one of 'none', 'all', 'lora_only'", lambda value: value in ("none", "all", "lora_only")
TYPES: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    "peft_type": _TEXT, "r": _SIZE, "lora_alpha": _NUMBER, "alpha": _NUMBER, "use_rslora": _FLAG, "use_dora": _FLAG, "lora_bias": _FLAG,
    "bias": _BIAS, "target_modules": _TARGETS, "exclude_modules": _TARGETS, "layers_to_transform": _INDICES, "layers_pattern": _TARGETS,
    "modules_to_save": _TEXTS, "target_parameters": _TEXTS, "trainable_token_indices": _TOKENS, "rank_pattern": _RANKS,
    "alpha_pattern": _ALPHAS, "lora_dropout": _NUMBER, "init_r": _SIZE, "fan_in_fan_out": _FLAG, "feedforward_modules": _TARGETS,
}  # fmt: skip
"""What a field must be where it is not null."""


@dataclass
class PeftConfig:
    """The fields of one config, without those that are null, and a matcher for its patterns."""

    values: Mapping[str, Any]
    where: str = NAME
    matcher: Matcher = field(default_factory=Matcher)

    @property
    def method(self) -> str:
        """PEFT's name of the method."""
        return str(self.values.get("peft_type", "LORA")).upper()

    def get(self, name: str, default: Any = None) -> Any:
        """A field, or the default where it is null or not there."""
        return self.values.get(name, default)

    def rank_of(self, module: str) -> int | None:
        """The rank it promises for a module: rank_pattern's first hit, else r, or None. Raises ValueError over a pattern."""
        return self._first("rank_pattern", module, self.get("r"))[0]

    def alpha_of(self, module: str) -> tuple[float, str]:
        """A module's alpha, and where it is from: alpha_pattern's first hit, else lora_alpha. Raises ValueError over a pattern."""
        name = "lora_alpha" if self.method in ("LORA", "ADALORA") else "alpha"
        alpha, key = self._first("alpha_pattern", module, self.get(name, 8))
        if key is not None:
            return float(alpha), f"alpha_pattern[{key!r}] of {self.where}"
        return float(alpha), f"{name} of {self.where}" if name in self.values else f"PEFT's default, as {self.where} gives no {name}"

    def _first(self, patterns: str, module: str, otherwise: Any) -> tuple[Any, str | None]:
        for key, value in self.get(patterns, {}).items():
            try:
                if self.matcher.ends(key, module):
                    return value, key
            except ValueError as error:
                raise ValueError(f"{patterns} has the pattern {_shown(key)}, which cannot be followed: {error}") from error
        return otherwise, None

    def scaling_of(self, alpha: float, rank: int) -> float:
        """What multiplies B A."""
        return alpha / math.sqrt(rank) if self.get("use_rslora", False) else alpha / rank

    def metadata(self) -> dict[str, str]:
        """The fields that no state has a place for, as `peft.<field>`."""
        gone = (HELD | IMPORTS | set(CHANGES)) - (ADALORA_KEPT if self.method == "ADALORA" else set())
        left = {key: value for key, value in self.values.items() if key not in gone}
        return {f"peft.{key}": to_text(value) for key, value in sorted(left.items()) if value not in ({}, []) and USUAL.get(key) != value}

    def notes(self) -> Iterator[str]:
        """What a reader should know of the config."""
        known = HELD | KEPT | IMPORTS | set(CHANGES) | OTHERS.get(self.method, set())
        if unknown := sorted(set(self.values) - known):
            listed = ", ".join(_shown(name) for name in unknown[:20])
            yield f"{self.where} has fields that loratk does not know, kept in the metadata: {listed}"
        if self.get("auto_mapping"):
            yield f"auto_mapping of {self.where} names code to import; loratk imports nothing, and leaves it out"
        init = self.get("init_lora_weights", True)
        if isinstance(init, str) and init.lower().startswith("loftq"):
            yield f"init_lora_weights is {init!r}: training may have changed the base's weights, and the adapter fits the changed ones only"
        if self.get("alora_invocation_tokens"):
            yield "alora_invocation_tokens: it is meant to act from these tokens on only; loratk has it act everywhere"


def read(path: Path, file: BinaryIO, where: str, found: list[str]) -> PeftConfig:
    """The config in an open file; what is wrong with its fields is added to `found`.

    Raises StoreError, or FormatError for what is no JSON object.
    """
    values = _load(path, file)
    if not isinstance(values, dict):
        raise FormatError(f"'{path}' must hold a JSON object, found a {type(values).__name__}; get a new copy")
    config = PeftConfig({key: value for key, value in values.items() if value is not None}, where)
    wrong = dict(_faults(config))
    found += [f"{where}: {fault}" for fault in wrong.values()]
    return PeftConfig({key: value for key, value in config.values.items() if key not in wrong}, where)


def kind(path: Path, file: BinaryIO) -> str | None:
    """What a config gives as its peft_type, sound or not, or None if it has none."""
    try:
        values = _load(path, file)
    except FormatError:
        file.seek(0)
        return "in text that is no sound JSON" if b'"peft_type"' in file.read(LARGEST) else None
    found = values.get("peft_type") if isinstance(values, dict) else None
    return None if found is None else _shown(found)


def _load(path: Path, file: BinaryIO) -> Any:
    try:
        if (size := os.fstat(file.fileno()).st_size) > LARGEST:
            raise FormatError(f"'{path}' has {size} bytes, more than the {LARGEST} of any config; get a new copy")
        return strict_json.loads(file.read(size).decode())
    except OSError as error:
        raise StoreError(f"cannot read '{path}': {error.strerror or error}; check the path and its permissions") from error
    except FormatError:
        raise
    except ValueError as error:
        raise FormatError(f"'{path}' is no JSON in UTF-8: {error}; get a new copy") from error


def _faults(config: PeftConfig) -> Iterator[tuple[str, str]]:
    """Each field that is wrong, and how."""
    for name, value in config.values.items():
        want, is_right = TYPES.get(name, ("", lambda value: True))
        if name == "rank_pattern" and config.method == "ADALORA":  # there it says which singular values were kept
            want, is_right = "an object", lambda value: isinstance(value, dict)
        if not is_right(value):
            yield name, f"{name} must be {want}, found {_shown(value)}"
        elif not name.isprintable():
            yield name, f"the field {_shown(name)} has a name with control characters"
        elif name in CHANGES and value:
            yield name, f"{name} is set, which {CHANGES[name]}; loratk does not read that"
    if "peft_type" not in config.values:
        yield "peft_type", f"peft_type is missing; loratk reads {', '.join(METHODS)}"
    elif isinstance(config.get("peft_type"), str) and config.method not in METHODS:
        yield "peft_type", f"peft_type is {_shown(config.get('peft_type'))}; loratk reads {', '.join(METHODS)}"


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 63


def _is_number(value: Any) -> bool:
    return _is_whole(value) or (isinstance(value, float) and math.isfinite(value))


def _wholes(value: Any) -> bool:
    return isinstance(value, list) and all(_is_whole(item) for item in value)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
