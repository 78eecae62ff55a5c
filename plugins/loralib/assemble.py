"""A state from the tensors of a file and what was asked about them: alpha, fused projections, convolutions, biases."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from loratk.errors import ConfigError, FormatError, UnknownNameError, choices, faults
from loratk.exchange import AdapterState, Base
from loratk.exchange.base import EMBEDDINGS

from .keys import Sorted
from .layers import Module, conv_factors, conv_update, linear
from .options import by_module, globs, number, switches, window
from .peft_config import alpha_beside
from .torch_zip import TorchArchive

NAME = "default"
DEFAULT_ALPHA = 1.0
"""What a layer of loralib has where nobody says another alpha."""


@dataclass(frozen=True)
class Questions:
    """What the file does not say, as the options answer it."""

    alpha: Any = None
    enable_lora: Any = None
    embeddings: Any = None
    conv: Any = None
    conv_rank: Any = None


@dataclass
class Assembly:
    """The tensors of one file on their way to a state; notes, and what is wrong with the file or with what was asked."""

    path: Path
    archive: TorchArchive
    found: Sorted
    asked: Questions
    base: Base | None
    notes: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    questions: list[str] = field(default_factory=list)

    def state(self) -> AdapterState:
        """The state. Raises ConfigError with everything that options must tell, FormatError with all that is wrong with the file."""
        factored = [module for module, held in self.found.modules.items() if "lora_A" in held]
        self.enabled = by_module("enable_lora", self.asked.enable_lora, factored, switches)
        self.windows = by_module("conv", self.asked.conv, factored, window)
        self.tables = self._tables(factored)
        alphas = self._alphas(factored)
        arrays = self.archive.arrays([name for names in self.found.modules.values() for name in names.values()])
        modules: dict[str, Module] = {}
        for module, names in self.found.modules.items():
            try:
                held = {parameter: arrays.pop(name) for parameter, name in names.items()}
                modules[module] = self._module(module, names, held, alphas.get(module))
            except FormatError as error:
                self.faults.append(f"module {module!r}: {error}")
        if self.faults:
            raise FormatError(faults(f"'{self.path}' is not an adapter of loralib or PEFT:", self.faults))
        if self.questions:
            raise ConfigError(faults(f"'{self.path}' does not say all that is needed:", self.questions))
        tensors = {f"{module}.{key}" if module else key: array for module, (_, held) in modules.items() for key, array in held.items()}
        return AdapterState(NAME, {}, tensors, {module: record for module, (record, _) in modules.items()})

    def _tables(self, factored: list[str]) -> set[str]:
        asked = globs("embeddings", self.asked.embeddings, factored)
        known = {module for module in factored if module.rpartition(".")[2] in EMBEDDINGS} - asked - self.found.tables
        if known:
            self.notes.append(f"{choices(known)} taken as look-up tables by their names")
        return asked | known | self.found.tables

    def _alphas(self, factored: list[str]) -> dict[str, tuple[float, bool, str]]:
        """Of each module alpha, whether it goes with the root of the rank, and where it came from."""
        asked = by_module("alpha", self.asked.alpha, factored, number)
        rest = [module for module in factored if module not in asked]
        beside = alpha_beside(self.path) if rest and self.found.peft else None
        if beside is not None:
            alpha, root, source = *beside, "adapter_config.json"
        else:
            alpha, root, source = DEFAULT_ALPHA, False, "loralib's default: the file does not say it"
        if rest:
            cure = "" if beside else "; give the real one with the option alpha"
            self.notes.append(f"alpha is {alpha:g} for {len(rest)} modules ({source}){cure}")
        said = {module: (value, False, "the option alpha") for module, value in asked.items()}
        return said | dict.fromkeys(rest, (alpha, root, source))

    def _module(self, module: str, names: Mapping[str, str], held: dict[str, np.ndarray], scale: tuple[float, bool, str] | None) -> Module:
        if wrong := [names[parameter] for parameter, array in held.items() if array.dtype.kind != "f"]:
            raise FormatError(f"{choices(wrong)} must be floating-point numbers")
        bfloat16 = {parameter for parameter, name in names.items() if self.archive.tensors[name].storage.dtype == "bfloat16"}
        if scale is None:
            return self._marked({"method": "full", "orientation": "torch"}, bfloat16), held
        alpha, root, source = scale
        a, b = held.pop("lora_A"), held.pop("lora_B")
        if module in self.windows:
            record, factors = self._conv(module, conv_update(a, b, alpha, *self.windows[module]), source)
            bfloat16 -= {"lora_A", "lora_B"}
        else:
            enabled = self.enabled.get(module)
            if enabled is None and a.ndim == b.ndim == 2 and len(a) > b.shape[1] > 0 and not len(a) % b.shape[1]:
                parts = len(a) // b.shape[1]
                self.questions.append(
                    f"module {module!r} has lora_A {a.shape} and lora_B {b.shape}, a fused projection with {parts} parts enabled; say "
                    f"which with the option enable_lora, such as {module.rpartition('.')[2]}={'T' * parts}"
                )
                return {}, {}
            record, factors = linear(a, b, alpha, table=module in self.tables, enabled=enabled, root=root)
            record |= {"method": "dora" if "magnitude" in held else "lora", "alpha_source": source}
        for parameter, array in held.items():
            factors |= self._beside(module, parameter, array.reshape(-1), record, bfloat16)
        return self._marked(record, bfloat16), factors

    def _conv(self, module: str, change: Module, source: str) -> Module:
        record, held = change
        if self.asked.conv_rank is None:
            self.notes.append(f"module {module!r}: loralib's convolution has no factors of its rank; its whole change is kept")
            return record | {"method": "diff", "orientation": "torch"}, held
        rank = next(iter(by_module("conv_rank", self.asked.conv_rank, [module], number).values()))
        (record, factors), lost = conv_factors(record, held["weight"], max(int(rank), 1))
        self.notes.append(f"module {module!r}: its change made factors of rank {record['rank']}, {lost:.2%} of it lost")
        return record | {"method": "lora", "alpha_source": f"folded in: {source}"}, factors

    def _beside(self, module: str, parameter: str, array: np.ndarray, record: Mapping[str, Any], bfloat16: set[str]) -> dict[str, Any]:
        """A magnitude or bias of a module that has factors too; of a whole bias its change."""
        if len(array) != record["shape"][1]:
            raise FormatError(f"its {parameter} has {len(array)} numbers, its columns are {record['shape'][1]}")
        if parameter != "bias":
            return {parameter: array}
        bfloat16.discard("bias")
        try:
            old = None if self.base is None else self.base.bias(module)
        except UnknownNameError as error:
            raise FormatError(str(error)) from error
        if old is None or old.shape != array.shape:
            known = "no base was given" if self.base is None else f"'{self.base.path}' has none of {array.shape}"
            self.questions.append(f"module {module!r} has a bias in place of the base's, and {known}: give the base, or ignore='*.bias'")
            return {}
        self.notes.append(f"module {module!r}: its bias kept as the change of the base's")
        return {"bias": (array.astype(np.float64) - old).astype(np.result_type(array.dtype, old.dtype, np.float32))}

    @staticmethod
    def _marked(record: dict[str, Any], bfloat16: set[str]) -> dict[str, Any]:
        return record | ({"dtypes": dict.fromkeys(sorted(bfloat16), "bfloat16")} if bfloat16 else {})
