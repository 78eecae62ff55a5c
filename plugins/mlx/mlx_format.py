"""The adapters of mlx-lm (`--adapter-path`). Source: mlx-lm, tuner/utils.py, tuner/lora.py, tuner/dora.py."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

from loratk.errors import ConfigError, FormatError, faults
from loratk.exchange import AdapterFormat, AdapterState, Option, Reading, Request
from loratk.exchange.tensors import read_tensors, tensor_names
from loratk.io import atomic_file, opened_files, replaced_files, write_safetensors

from .config import NAME as CONFIG
from .config import MlxConfig, load_json, looks_like, parse
from .reading import Adapter, known_tables
from .writing import pack

NAME = "default"
TENSORS = "adapters.safetensors"


class MlxFormat(AdapterFormat):
    """One adapter in a folder; of its checkpoints each may be read, by its path or by the option."""

    name, title, folder = "mlx", "mlx-lm folder", True
    carries: ClassVar[Mapping[str, str]] = {
        "names": "yes", "several": "no", "alpha": "yes", "ranks": "filled up to one rank, folded into B", "rslora": "as the scale",
        "conv": "no", "embedding": "yes", "einsum": "no", "experts": "yes", "dora": "of linear layers, in all modules or in none",
        "bias": "in whole modules only", "full": "matrices and vectors, without adapters beside them", "methods": "no", "bfloat16": "yes",
        "metadata": "yes", "fingerprint": "no",
    }  # fmt: skip
    options: ClassVar[Mapping[str, Option]] = {
        "checkpoint": Option("reading: the number of a checkpoint, such as 100 for 0000100_adapters.safetensors"),
        "embeddings": Option("reading: names of further look-up tables, such as 'tokens,pos'; embed_tokens and wte are known"),
        "scale": Option(f"reading adapters without their {CONFIG}: the factor to apply (mlx-lm trains with 20 if not told otherwise)"),
        "num_blocks": Option("writing: how many blocks the base has, if neither the adapter nor --base tells"),
        "model": Option("writing: which base it is for, as mlx-lm's config calls it"),
    }  # fmt: skip

    def detect(self, path: Path) -> str | None:
        """A config that says fine_tune_type or lora_parameters, and no peft_type; or tensors in .lora_a and .lora_b."""
        if not path.is_dir():
            return _named(path)
        with opened_files(path, [name for name in (CONFIG, TENSORS) if not (path / name).is_dir()]) as files:
            evidence = looks_like(_json(path, files))
            if evidence is None and (tensors := files.get(TENSORS)) is not None and (said := _named(path / TENSORS, tensors)) is not None:
                return f"{TENSORS}: {said}"
            return evidence

    def adapters(self, path: Path) -> list[str]:
        """`["default"]`: a folder holds one."""
        return [NAME]

    def read(self, path: Path, request: Request) -> Reading:
        """The adapter, or one of its checkpoints. Raises FormatError with every fault of config and tensors."""
        folder, tensors = self._place(path, request)
        tables = known_tables([part.strip() for part in str(self.option(request, "embeddings") or "").split(",") if part.strip()])
        scale = _scale(self.option(request, "scale"))
        with opened_files(folder, [CONFIG, tensors]) as files:
            adapter, state = _read(path, tensors, files, request, tables, scale)
        if tensors != TENSORS:
            adapter.notes.append(f"the tensors are those of {tensors!r}")
        return Reading([state] if request.adapters is None or NAME in request.adapters else [], adapter.notes)

    def _place(self, path: Path, request: Request) -> tuple[Path, str]:
        """The folder, and the name of the file with the tensors."""
        checkpoint = self.option(request, "checkpoint")
        if checkpoint is None:
            return (path, TENSORS) if path.is_dir() else (path.parent, path.name)
        text = str(checkpoint)
        if not (text.isascii() and text.isdecimal() and len(text) <= 9) or not path.is_dir():
            raise ConfigError(f"the option checkpoint is the number of one in a folder, found {checkpoint!r} for '{path}'")
        name = f"{int(text):07d}_{TENSORS}"
        if not (path / name).is_file():
            there = sorted(entry.name for entry in path.glob(f"*_{TENSORS}"))
            raise ConfigError(f"'{path}' has no checkpoint {name!r}; it has {', '.join(there[:8]) or 'none'}")
        return path, name

    def write(self, path: Path, states: Sequence[AdapterState], request: Request) -> list[str]:
        """Write one adapter; other files in the folder, such as checkpoints, are left as they are."""
        _refuse_peft(path)
        packed = pack(states[0], request.base, {name: self.option(request, name) for name in self.options})
        with replaced_files(path, [CONFIG, TENSORS]) as places:
            write_safetensors(places[TENSORS], packed.arrays, packed.header, packed.bfloat16)
            with atomic_file(places[CONFIG]) as file:
                file.write(packed.config.text().encode())
        return packed.notes


def _json(folder: Path, files: Mapping[str, BinaryIO | None]) -> Any:
    """What the config of a folder says; None where there is none, or no JSON in it."""
    with suppress(FormatError):
        if (file := files.get(CONFIG)) is not None:
            return load_json(folder / CONFIG, file)
    return None


def _named(path: Path, file: BinaryIO | None = None) -> str | None:
    """The evidence in the names of a safetensors file."""
    found = tensor_names(path, file)
    if found is None:
        return None
    name = next((name for name in found[0] if name.rpartition(".")[2] in ("lora_a", "lora_b")), None)
    return None if name is None else f"its tensors are named as mlx-lm names them, such as {name[:60]!r}"


def _refuse_peft(path: Path) -> None:
    """Raises ConfigError for a folder whose config is of PEFT, which has the same name: its tensors would be left without one."""
    if not path.is_dir() or (path / CONFIG).is_dir():
        return
    with opened_files(path, [CONFIG]) as files:
        record = _json(path, files)
    if isinstance(record, Mapping) and "peft_type" in record:
        raise ConfigError(f"'{path}' holds an adapter of PEFT, whose {CONFIG} has the same name; write to another folder")


def _scale(value: Any) -> float | None:
    if value is None:
        return None
    try:
        scale = float(value)
    except (TypeError, ValueError, OverflowError):
        scale = math.nan
    if not math.isfinite(scale):
        raise ConfigError(f"the option scale must be a finite number, found {value!r}")
    return scale


def _read(
    path: Path, name: str, files: Mapping[str, BinaryIO | None], request: Request, tables: set[str], scale: float | None
) -> tuple[Adapter, AdapterState]:
    """Config and tensors as a state. Raises FormatError with every fault of both."""
    found: list[str] = []
    notes: list[str] = []
    folder, config, tensors = path if path.is_dir() else path.parent, files[CONFIG], files[name]
    bare = config is None
    if bare and scale is None:
        raise ConfigError(f"'{path}' has no {CONFIG} beside its tensors, which holds the scale; give it as the option scale")
    if tensors is None:
        raise FormatError(f"'{path}' has {CONFIG}, but no {name}; get the whole folder")
    if not bare and scale is not None:
        raise ConfigError(f"'{path}' has its scale in {CONFIG}; leave the option scale out, or change it there")
    settings = MlxConfig(scale=scale or 0.0) if config is None else parse(load_json(folder / CONFIG, config), found, notes)
    file = read_tensors(folder / name, tensors)
    if bare and any(name.rpartition(".")[2] == "m" for name in file.arrays):
        settings = MlxConfig("dora", scale=scale or 0.0)
    adapter = Adapter(settings, file, request, tables, bare, found, [], notes)
    state = adapter.read()
    if adapter.found:
        raise FormatError(faults(f"'{path}' is not a sound adapter of mlx-lm; correct it or get a new copy:", adapter.found))
    if adapter.asked:
        raise ConfigError(faults(f"'{path}' holds what loratk has no place for:", adapter.asked))
    return adapter, state
