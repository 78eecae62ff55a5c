"""Adapters as PEFT keeps them: a folder with adapter_config.json and adapter_model.safetensors, further adapters in folders in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

from loratk import hookimpl
from loratk.errors import ConfigError, FormatError, choices, faults
from loratk.exchange import AdapterFormat, AdapterState, Option, Reading, Request
from loratk.io import open_safetensors, opened_files, replaced_files

from . import config as configs
from . import disk, fields, keys, others, reading, writing


class PeftFormat(AdapterFormat):
    """PEFT's folders; of a bare adapter_model.safetensors the tensors alone, if alpha is given."""

    name, title, folder = "peft", "PEFT folder", True
    carries: ClassVar[Mapping[str, str]] = {
        "names": "yes", "several": "in folders of their own", "alpha": "yes", "ranks": "yes", "rslora": "yes", "conv": "yes",
        "embedding": "yes", "einsum": "no", "experts": "yes", "dora": "in all modules or none", "bias": "as the whole bias (--base)",
        "full": "replaced, not changed", "methods": "AdaLoRA, VeRA, LoHa, LoKr, IA3", "bfloat16": "yes", "metadata": "in the file's header",
        "fingerprint": "in the file's header",
    }  # fmt: skip
    options: ClassVar[Mapping[str, Option]] = {
        "alpha": Option("reading adapter_model.safetensors without its config: alpha of all modules"),
        "rslora": Option("reading without config: whether scaling is alpha / sqrt(rank)", False),
        "residual_base": Option("reading PiSSA, OLoRA, CorDA, LoRA-GA: whether the base is the one that such training changed", False),
        "base_model_name_or_path": Option("writing: which base it is for"),
        "task_type": Option("writing: such as CAUSAL_LM"),
        "revision": Option("writing: of the base"),
        "fan_in_fan_out": Option("writing: whether the adapted layers are Conv1D of transformers, as in GPT-2"),
        "lora_dropout": Option("writing: the dropout to train on with"),
        "inference_mode": Option("writing: whether PEFT loads it frozen", True),
        "flat": Option("writing: whether the only adapter goes to the folder itself whatever its name, which is then not kept", False),
    }

    def detect(self, path: Path) -> str | None:
        """A config with peft_type, in the folder or in one within; tensors named as PEFT names them."""
        if not path.is_dir():
            return _detect_file(path)
        for name, home in disk.adapters(path).items():
            with opened_files(home, [configs.NAME]) as files:
                file = files[configs.NAME]
                kind = configs.kind(home / configs.NAME, file) if file is not None else None
            if kind is not None:
                return f"{configs.NAME}{f' of {name!r}' if home != path else ''} has the peft_type {kind}"
        return None

    def adapters(self, path: Path) -> list[str]:
        """`default`, that of the folder itself, and the names of the folders in it that have a config."""
        return list(disk.adapters(path)) if path.is_dir() else [disk.DEFAULT]

    def read(self, path: Path, request: Request) -> Reading:
        """The adapters asked for. Raises FormatError with every fault of all of them."""
        if not path.is_dir():
            return self._read_file(path, request)
        known = disk.adapters(path)
        if not known:
            raise FormatError(
                f"'{path}' holds no PEFT adapter: there is no {configs.NAME} in it, nor in a folder in it; get the whole folder"
            )
        homes = {name: home for name, home in known.items() if request.adapters is None or name in request.adapters}
        result = _Result(path, len(homes) > 1)
        for name, home in homes.items():
            wrong: list[str] = []
            where = configs.NAME if home == path else f"{home.name}/{configs.NAME}"
            try:
                with disk.opened(home) as (file, tensors):
                    config = configs.read(home / configs.NAME, file, where, wrong)
                    result.add(name, config, tensors, request, wrong)
            except FormatError as error:
                result.found.append(str(error))
        return result.reading()

    def unheld(self, state: AdapterState) -> list[str]:
        """Methods that PEFT does not have, and those beside a second one."""
        return others.unheld(state)

    def _read_file(self, path: Path, request: Request) -> Reading:
        """Tensors without a config: what it would say is asked for."""
        alpha, config = self.option(request, "alpha"), path.with_name(configs.NAME)
        if alpha is None:
            cure = f"give the folder '{path.parent}': its {configs.NAME} holds it" if config.exists() else "give it as the option alpha"
            raise ConfigError(f"'{path}' holds the tensors of a PEFT adapter, but not its alpha; {cure}.")
        result = _Result(path, False)
        with open_safetensors(path) as file:
            method = keys.looks_like(file.names()) or "LORA"
            values: dict[str, Any] = {
                "peft_type": method,
                "lora_alpha": _number(alpha),
                "use_rslora": _flag(self.option(request, "rslora")),
            }
            values["alpha"] = values["lora_alpha"]
            parameters = {part for name in file.names() for part in name.split(".")[-3:]}
            values["use_dora"] = "lora_magnitude_vector" in parameters
            values["lora_bias"] = any(name.split(".")[-1] == "bias" and "lora_B" in name.split(".")[-3:] for name in file.names())
            result.add(disk.DEFAULT, configs.PeftConfig(values, "the option alpha"), file, request, [])
        return result.reading()

    def write(self, path: Path, states: Sequence[AdapterState], request: Request) -> list[str]:
        """The adapter named `default` goes to the folder itself, the others to folders of their names in it, as PEFT does it."""
        options = {name: self.option(request, name) for name in self.options}
        flat = fields.flag("flat", options["flat"]) and len(states) == 1
        names = {state.name: "" if flat or state.name == disk.DEFAULT else state.name for state in states}
        plans, notes, wrong = {}, [], []
        for state in states:
            plan = writing.plan(state, request.base, options)
            plans[state.name] = plan
            wrong += [f"adapter {state.name!r}: {fault}" for fault in (*plan.found, *writing.name_faults(names[state.name]))]
            notes += [f"adapter {state.name!r}: {note}" if len(states) > 1 else note for note in plan.notes]
        if wrong:
            raise ConfigError(faults(f"nothing was written to '{path}': PEFT cannot hold all of it:", wrong))
        files = {name: [str(PurePosixPath(inner, file)) for file in disk.FILES] for name, inner in names.items()}
        with replaced_files(path, [file for pair in files.values() for file in pair]) as places:
            for name, plan in plans.items():
                writing.write(plan, *(places[file] for file in files[name]))
        kept = set(disk.adapters(path)) - {inner or disk.DEFAULT for inner in names.values()}
        if kept:
            notes.append(f"'{path}' also holds {choices(kept)}, left as they were")
        if flat and states[0].name != disk.DEFAULT:
            notes.append(f"the folder itself is the adapter {disk.DEFAULT!r}; the name {states[0].name!r} is not kept")
        return notes


@dataclass
class _Result:
    """What several adapters of a path come to."""

    path: Path
    several: bool
    states: list[AdapterState] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    found: list[str] = field(default_factory=list)

    def add(self, name: str, config: Any, file: Any, request: Request, wrong: list[str]) -> None:
        state, notes, found = (
            (None, [], []) if wrong and config.method not in configs.METHODS else reading.read(name, config, file, request)
        )
        self.states += [state] if state is not None else []
        before = f"adapter {name!r}: " if self.several else ""
        self.notes += [before + note for note in notes]
        self.found += [before + fault for fault in (*wrong, *found)]

    def reading(self) -> Reading:
        if self.found:
            raise FormatError(faults(f"'{self.path}' is not a sound PEFT adapter; correct it or get a new copy:", self.found))
        return Reading(self.states, self.notes)


def _detect_file(path: Path) -> str | None:
    try:
        with open_safetensors(path) as file:
            method = keys.looks_like(file.names())
    except FormatError:
        return None
    return None if method is None else f"its tensors are named as PEFT names those of {method}"


def _number(value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"The option alpha must be a number, found {value!r}.") from error
    if not abs(number) < float("inf"):
        raise ConfigError(f"The option alpha must be a finite number, found {value!r}.")
    return number


def _flag(value: Any) -> bool:
    return fields.flag("rslora", value)


@hookimpl
def register_formats() -> list[AdapterFormat]:
    """PEFT's folders."""
    return [PeftFormat()]
