"""LoRA factors that loralib, or PEFT before it had safetensors, kept with torch.save: read if asked for by name, never written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from loratk.errors import FormatError, choices, faults
from loratk.exchange import AdapterFormat, Option, Reading, Request
from loratk.exchange.tensors import name_faults

from .assemble import NAME, Assembly, Questions
from .keys import Sorted, sort_names
from .options import globs
from .torch_zip import open_torch

FILE = "adapter_model.bin"


class LoralibFormat(AdapterFormat):
    """One adapter in a file of torch.save. Nothing in it is run: see `tensor_pickle`."""

    name = "loralib"
    title = "loralib or PEFT state dict of torch.save, where named"
    carries: ClassVar[Mapping[str, str]] = {
        "names": "yes", "several": "no", "alpha": "asked for, else 1", "ranks": "alpha by the option", "rslora": "in PEFT's files",
        "conv": "as the whole change of the weight", "embedding": "yes", "einsum": "no", "experts": "no", "dora": "in PEFT's files",
        "bias": "yes, with the base", "full": "no", "methods": "no", "bfloat16": "yes", "metadata": "no", "fingerprint": "no",
    }  # fmt: skip
    options: ClassVar[Mapping[str, Option]] = {
        "alpha": Option("lora_alpha, which loralib's files do not hold: 16, or by module, such as '*.q=16,8'; 1 where nobody says it"),
        "enable_lora": Option("parts of a fused projection (MergedLinear) that have factors, such as 'c_attn=TFT'"),
        "embeddings": Option("modules that are look-up tables, as globs, such as 'tokens,*.pos'; wte and the like are known"),
        "conv": Option("modules that are 2-D convolutions with the size of their window, and groups, such as 'conv1=3,conv2=5/2'"),
        "conv_rank": Option("the rank of factors nearest to a convolution's change, in place of the whole change"),
        "ignore": Option("tensors to leave out, as globs, such as '*.weight,head.*'"),
    }

    def detect(self, path: Path) -> str | None:
        """None: a pickle is read only where the format is named."""
        return None

    def adapters(self, path: Path) -> list[str]:
        """`["default"]`, of a file that is sound."""
        with open_torch(_file(path)):
            return [NAME]

    def read(self, path: Path, request: Request) -> Reading:
        """The adapter in loratk's orientation. Raises ConfigError where an option has to tell what the tensors are."""
        path, notes = _file(path), []
        questions = Questions(**{name: self.option(request, name) for name in self.options if name != "ignore"})
        with open_torch(path) as archive:
            names = list(archive.tensors)
            left = globs("ignore", self.option(request, "ignore"), names)
            found = sort_names([name for name in names if name not in left])
            wrong = [*name_faults(names), *_faults(found, request, notes)]
            if wrong:
                raise FormatError(faults(f"'{path}' is not an adapter of loralib or PEFT:", wrong))
            if left:
                notes.append(f"{len(left)} tensors left out by the option ignore")
            if found.stripped:
                notes.append(f"{choices(found.stripped)} left out of the names")
            if archive.wrapper:
                notes.append(f"the tensors are those under the key {archive.wrapper!r}")
            assembly = Assembly(path, archive, found, questions, request.base)
            states = [assembly.state()] if request.adapters is None or NAME in request.adapters else []
        return Reading(states, notes + assembly.notes)


def _file(path: Path) -> Path:
    return path / FILE if path.is_dir() else path


def _faults(found: Sorted, request: Request, notes: list[str]) -> list[str]:
    """What is wrong with the names. Modules that lack a factor which may be missing are taken out of `found`."""
    wrong = list(found.faults)
    if found.others:
        some = f"{choices(found.others[:6])}{f' and {len(found.others) - 6} more' if len(found.others) > 6 else ''}"
        wrong.append(f"{some} are no LoRA factors; save lora_state_dict(model), or leave them out with the option ignore")
    for module, held in list(found.modules.items()):
        if {"lora_A", "lora_B"} <= held.keys() or held.keys() == {"bias"}:
            continue
        lacks = {_other(held[key], key) for key in ("lora_A", "lora_B") if key in held} or {f"{module}.lora_A", f"{module}.lora_B"}
        if request.may_miss(*lacks):
            del found.modules[module]
            notes.append(f"module {module!r} left out: {choices(lacks)} is missing, as allowed")
        else:
            wrong.append(f"module {module!r} has {choices(held.values())}, but lacks {choices(lacks)}")
    if not found.modules and not wrong:
        wrong.append("it holds no LoRA factors")
    return wrong


def _other(name: str, key: str) -> str:
    """The name of the other factor."""
    parts = name.split(".")
    at = next(at for at in range(len(parts) - 1, -1, -1) if parts[at].startswith("lora_") and parts[at][-2:] in ("_A", "_B"))
    parts[at] = parts[at][:-1] + ("B" if key == "lora_A" else "A")
    return ".".join(parts)
