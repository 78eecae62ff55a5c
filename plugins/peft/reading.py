"""The tensors of one PEFT adapter as a state, held against its config: LoRA and DoRA on any layer, biases, whole modules, token rows."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from loratk.errors import ConfigError
from loratk.exchange import AdapterState, Request, config_for
from loratk.io.safetensors import SafetensorsReader

from . import beside, factors, first, others
from .config import PeftConfig
from .keys import TOKENS, Key, Stripped, parse
from .targets import target_faults


@dataclass
class Adapter:
    """One adapter on its way from a file: the tensors by module and key, and what was found wrong or decided meanwhile."""

    name: str
    config: PeftConfig
    file: SafetensorsReader
    request: Request
    found: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    tensors: dict[str, np.ndarray] = field(default_factory=dict)
    modules: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(self, module: str, parameter: str, array: np.ndarray, source: str) -> None:
        """A parameter of a module that has its record; `source` is the tensor's name in the file."""
        self.tensors[f"{module}.{parameter}"] = array
        if self.file.dtype(source) == "BF16":
            self.modules[module].setdefault("dtypes", {})[parameter] = "bfloat16"

    def missing(self, source: str, why: str) -> bool:
        """Whether a tensor may be missing; if not, that it is a fault."""
        if self.request.may_miss(source):
            return True
        self.found.append(f"tensor {source!r} is missing: {why}")
        return False

    def unexpected(self, source: str, why: str) -> None:
        """A fault: a tensor that has no place."""
        self.found.append(f"unexpected tensor {source!r} {self.file.shape(source)}: {why}")

    def alpha(self, module: str, rank: int) -> dict[str, Any]:
        """Rank, alpha and scaling for the record of a module, as PEFT calls it; a rank that the config does not promise is a fault."""
        try:
            promised = self.config.rank_of(module)
            alpha, source = self.config.alpha_of(module)
        except ValueError as error:
            if str(error) not in self.found:
                self.found.append(str(error))
            return {"rank": rank, "alpha": float(rank), "scaling": 1.0}
        if promised is not None and promised != rank:
            self.found.append(f"module {module!r}: its tensors have rank {rank}, {self.config.where} promises {promised}")
        scaling = self.config.scaling_of(alpha, max(rank, 1))
        return {"rank": rank, "alpha": alpha, "scaling": scaling, "alpha_source": source}


def read(name: str, config: PeftConfig, file: SafetensorsReader, request: Request) -> tuple[AdapterState, list[str], list[str]]:
    """A state, its notes, and every fault of the file against its config."""
    adapter = Adapter(name, config, file, request)
    keys = _keys(adapter)
    mine = {key: source for key, source in keys.items() if key.parameter not in ("", TOKENS)}
    wrapped = factors.read(adapter, mine) if config.method == "LORA" else others.read(adapter, mine)
    adapter.found += target_faults(config, wrapped, request.may_miss)
    beside.read_tokens(adapter, {key: source for key, source in keys.items() if key.parameter == TOKENS})
    beside.read_plain(adapter, {key: source for key, source in keys.items() if not key.parameter}, wrapped)
    if not adapter.modules and not adapter.found:
        adapter.found.append("it holds no tensor of an adapter")
    adapter.notes += config.notes()
    state = first.settled(adapter, AdapterState(name, {}, adapter.tensors, adapter.modules, *_header(adapter)))
    return (state if adapter.found else _configured(state, config)), adapter.notes, adapter.found


def _keys(adapter: Adapter) -> dict[Key, str]:
    """The names of the file taken apart; two that mean the same tensor are a fault."""
    stripped, keys = Stripped(), {}
    for source in sorted(adapter.file.names()):
        try:
            key = parse(source, adapter.config.method, stripped, {adapter.name, "default"})
        except ValueError as error:
            adapter.found.append(f"tensor {source[:80]!r} {error}")
            continue
        if key.parameter == "lora_magnitude_vector":
            key = Key(key.module, key.parameter, "")
        if not key.parameter and "original_module" in key.module.split("."):
            adapter.notes.append(f"{source!r} was left out: it is the base's own, beside the module that replaces it")
        elif key not in keys:
            keys[key] = source
        elif not key.parameter and _same(adapter.file, source, keys[key]):
            continue  # with bias="all" PEFT writes the biases of whole modules twice
        else:
            adapter.found.append(f"{keys[key]!r} and {source!r} mean the same tensor; save one adapter alone")
    adapter.notes += stripped.notes(len(adapter.file.names()))
    return keys


def _same(file: SafetensorsReader, left: str, right: str) -> bool:
    return file.shape(left) == file.shape(right) and np.array_equal(file.array(left), file.array(right))


def _header(adapter: Adapter) -> tuple[str, dict[str, str]]:
    """Fingerprint and metadata: those of the file's header, and the config's fields that have no other place."""
    held = dict(adapter.file.metadata)
    held.pop("format", None)  # "pt"
    fingerprint, own = held.pop("loratk.fingerprint", ""), held.pop("loratk.format", None)
    return fingerprint, held | ({} if own is None else {"format": own}) | adapter.config.metadata()


def _configured(state: AdapterState, config: PeftConfig) -> AdapterState:
    """A state with the LoraConfig it would have, where there is one."""
    dropout = config.get("vera_dropout" if config.method == "VERA" else "lora_dropout", 0.0)
    try:
        own = state.config | ({"dropout": float(dropout)} if 0 <= dropout < 1 else {})
        return replace(state, config=config_for(replace(state, config=own)))
    except ConfigError:
        return replace(state, config={})
