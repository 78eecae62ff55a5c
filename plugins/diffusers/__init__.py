"""Adapters as diffusers keeps them: `pytorch_lora_weights.safetensors`, PEFT's tensors below the component of a pipeline."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from loratk import hookimpl
from loratk.errors import FormatError, faults
from loratk.exchange import FEATURES, AdapterFormat, AdapterState, Option, Reading, Request
from loratk.exchange.tensors import TensorFile, marks, read_tensors, tensor_names
from loratk.exchange.torch_layout import from_torch
from loratk.io import write_safetensors

from .config import KEY, Component, parse
from .keys import COMPONENTS, HALVES, Keys, sort_keys, split_key
from .writing import pack

WEIGHTS = "pytorch_lora_weights.safetensors"
WRITTEN = {"lora_A": "lora_A.weight", "lora_B": "lora_B.weight"}


class DiffusersFormat(AdapterFormat):
    """The LoRA files of diffusers."""

    name = "diffusers"
    title = "diffusers LoRA weights"
    suffixes = (WEIGHTS, ".safetensors")
    carries: ClassVar[Mapping[str, str]] = dict.fromkeys(FEATURES, "yes") | {
        "names": "below a component of a pipeline", "several": "no", "embedding": "no", "einsum": "no", "experts": "no",
        "bias": "lora_bias alone", "full": "no", "methods": "no", "fingerprint": "no",
    }  # fmt: skip
    options: ClassVar[Mapping[str, Option]] = {
        "component": Option(f"writing: the component of modules whose paths begin with none: {', '.join(COMPONENTS[:6])}, ...")
    }

    def detect(self, path: Path) -> str | None:
        """A tensor of a component, or in one of the old spellings; a folder with the file of the usual name counts as it."""
        held = tensor_names(_file(path))
        for key in held[0] if held else ():
            split = split_key(key)
            if split is not None and split[1] in HALVES.values():
                return f"its tensors are such as {key!r}"
        return None

    def adapters(self, path: Path) -> list[str]:
        """One, without a name."""
        return ["default"]

    def read(self, path: Path, request: Request) -> Reading:
        """The adapter, with alpha from its tensor, the config in the header, or else the rank of each module."""
        path = _file(path)
        file = read_tensors(path)
        keys = sort_keys(file.arrays)
        found = keys.faults
        configs = parse(file.metadata[KEY], found) if KEY in file.metadata else {}
        reader = _Reader(file, configs, request, found)
        modules = {name: module for name, held in keys.modules.items() if (module := reader.module(name, held)) is not None}
        for component, config in configs.items():
            paths = [name.partition(".")[2] for name in keys.modules if name.partition(".")[0] == component]
            config.finish(paths)
            found += [] if paths else [f"{KEY} has the component {component!r}, the tensors have not"]
        if found or not modules:
            raise FormatError(faults(f"'{path}' is not a sound {self.title} file:", found or ["it has no adapter"]))
        tensors = {f"{name}.{key}": array for name, (_, held) in modules.items() for key, array in held.items()}
        metadata = {key: text for key, text in file.metadata.items() if key not in (KEY, "format")}
        state = AdapterState("default", {}, tensors, {name: record for name, (record, _) in modules.items()}, metadata=metadata)
        return Reading([state], [*_notes(keys, configs), *reader.notes])

    def write(self, path: Path, states: Sequence[AdapterState], request: Request) -> list[str]:
        """The adapter in the new spelling, with the config of each component in the header."""
        packed = pack(states[0], self.option(request, "component"))
        own = {key: text for key, text in states[0].metadata.items() if key not in (KEY, "format")}
        write_safetensors(path, packed.arrays, own | {"format": "pt", KEY: packed.config}, packed.bfloat16)
        notes = packed.notes
        if any(record["scaling"] != 1 for record in states[0].modules.values()):
            notes.append(f"the scalings are in the header ({KEY}); older versions of diffusers take 1 for them: --portable suits both")
        if path.name != WEIGHTS:
            notes.append(f"diffusers looks for '{WEIGHTS}'; for another name it needs weight_name={path.name!r}")
        return notes


class _Reader:
    """Makes a record and parameters of each module's tensors; what is wrong goes to `found`."""

    def __init__(self, file: TensorFile, configs: Mapping[str, Component], request: Request, found: list[str]) -> None:
        self.file, self.configs, self.found, self.request = file, configs, found, request
        self.notes: list[str] = []

    def module(self, name: str, keys: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """One module, or None where it is no sound one."""
        lacks = [f"{name}.{WRITTEN[half]}" for half in ("lora_A", "lora_B") if half not in keys]
        if lacks and self.request.may_miss(*lacks):
            self.notes.append(f"{name!r} is left out: {', '.join(map(repr, lacks))} may be missing")
            return None
        if lacks:
            self.found.append(f"module {name!r}: {' and '.join(map(repr, lacks))} missing beside {', '.join(map(repr, keys.values()))}")
            return None
        try:
            return self._module(name, keys)
        except FormatError as error:
            self.found.append(f"module {name!r}: {error}")
            return None

    def _module(self, name: str, keys: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, Any]]:
        arrays = {key: self.file.arrays[full] for key, full in keys.items()}
        for key, array in arrays.items():
            if key != "alpha" and (array.dtype.kind != "f" or not array.size):
                raise FormatError(f"{keys[key]!r} must be floating-point numbers, found {array.dtype} {array.shape}")
        facts, a, b = from_torch(arrays["lora_A"], arrays["lora_B"])
        component, _, path = name.partition(".")
        record = {"method": "lora", **facts, **self._scale(facts["rank"], path, self.configs.get(component), arrays)}
        held = {"lora_A": a, "lora_B": b}
        if "magnitude" in arrays:
            record["method"] = "dora"
        for key in ("magnitude", "lora_bias"):
            if key in arrays:
                held[key] = arrays[key].reshape(-1)
                if arrays[key].size != b.shape[1] or b.shape[1] not in arrays[key].shape:
                    raise FormatError(f"{keys[key]!r} must have {b.shape[1]} numbers along one axis, found {arrays[key].shape}")
        self._promises(name, self.configs.get(component), held)
        return record | marks(self.file, keys), held

    def _scale(self, rank: int, path: str, config: Component | None, arrays: Mapping[str, Any]) -> dict[str, Any]:
        """alpha, scaling and where alpha came from: its tensor, the config's pattern, the config, or the module's own rank."""
        alpha, source = (None, "") if config is None else config.module_alpha(path)
        source = f"{source} of the header"
        if config is not None and (want := config.module_rank(path)) not in (None, rank):
            raise FormatError(f"the header gives it rank {want}, its tensors have {rank}")
        if "alpha" in arrays:
            alpha, source = _number(arrays["alpha"]), "the file's alpha"
        if alpha is None:
            alpha, source = float(rank), "the rank, for there is no alpha"
        scaling = alpha / (math.sqrt(rank) if config is not None and config.rslora and "alpha" not in arrays else rank)
        return {"alpha": alpha, "scaling": scaling, "alpha_source": source}

    def _promises(self, name: str, config: Component | None, held: Mapping[str, Any]) -> None:
        """Whether each tensor that the header's use_dora and lora_bias promise is there, and none that they do not."""
        if config is None:
            return
        for said, value, key, end in (
            ("use_dora", config.dora, "magnitude", "lora_magnitude_vector"),
            ("lora_bias", config.bias, "lora_bias", "lora_B.bias"),
        ):
            if value and key not in held and not self.request.may_miss(f"{name}.{end}"):
                raise FormatError(f"'{name}.{end}' is missing, which the header's {said} promises")
            if not value and key in held:
                raise FormatError(f"it has '{name}.{end}', but the header's {said} is not true")


def _number(array: Any) -> float:
    if array.size != 1 or array.ndim > 1 or array.dtype.kind not in "fiu" or not math.isfinite(value := float(array.reshape(-1)[0])):
        raise FormatError(f"its alpha must be one finite number, found {array.dtype} {array.shape}: {array.reshape(-1)[:2].tolist()}")
    return value


def _notes(keys: Keys, configs: Mapping[str, Component]) -> list[str]:
    notes = []
    if keys.old:
        notes.append(f"{keys.old} keys are in old spellings ('.lora.down', '_lora.down', '.lora_linear_layer.down', '.processor')")
    if keys.bare:
        notes.append(f"{keys.bare} keys begin with no component of a pipeline: they are of the unet, whose paths they have")
    if keys.names:
        notes.append(f"the adapter's name {next(iter(keys.names))!r} was taken out of the keys")
    if not configs:
        notes.append(f"the header has no {KEY}")
    return notes


def _file(path: Path) -> Path:
    """The file itself, of a folder that `save_lora_weights` wrote the one in it."""
    return path / WEIGHTS if path.is_dir() and (path / WEIGHTS).is_file() else path


@hookimpl
def register_formats() -> list[AdapterFormat]:
    """diffusers."""
    return [DiffusersFormat()]
