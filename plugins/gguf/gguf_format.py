"""The adapter files of llama.cpp (GGUF, `--lora`). Source: llama.cpp, src/llama-adapter.cpp and convert_lora_to_gguf.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from loratk.errors import FormatError
from loratk.exchange import AdapterFormat, AdapterState, Option, Reading, Request

from .file import open_gguf, peek, write_gguf
from .metadata import KIND, TYPE
from .reading import Adapter, kind_fault
from .writing import Packed

NAME = "default"


class GgufFormat(AdapterFormat):
    """One adapter in a GGUF file, named and ordered as the base's tensors are in llama.cpp."""

    name = "gguf"
    title = "GGUF adapter (llama.cpp)"
    suffixes = (".gguf",)
    carries: ClassVar[Mapping[str, str]] = {
        "names": "by a table for each architecture", "several": "no", "alpha": "as float32, but 0, which is folded into B",
        "ranks": "folded into B where one alpha does not fit", "rslora": "folded into B", "conv": "no",
        "embedding": "that of the tokens", "einsum": "no", "experts": "as llama.cpp's stacks", "dora": "no",
        "bias": "no", "full": "no", "methods": "no", "bfloat16": "yes", "metadata": "yes", "fingerprint": "no",
    }  # fmt: skip
    options: ClassVar[Mapping[str, Option]] = {
        "architecture": Option("the base's, as its own GGUF says (llama, qwen2, gemma2, ...); writing needs it unless the source was GGUF"),
        "n_head": Option("attention heads of the base, for architectures whose q and k are reordered (llama and its kin)"),
        "n_head_kv": Option("its key and value heads (num_key_value_heads in config.json)"),
        "permute": Option("yes or no: whether rows of q and k are in llama.cpp's own order; as a default by architecture"),
        "names": Option("a JSON file of further names, module to tensor, N for the block; or 'gguf' to keep GGUF's names and rows"),
        "experts": Option("reading: 'stacked' as in the file, or 'split' into a module for each", "stacked"),
        "quantize": Option("writing: q8_0 stores 8-bit blocks where rows allow it, float16 elsewhere"),
    }

    def detect(self, path: Path) -> str | None:
        """Whether it begins with "GGUF"; what the first values say is part of the evidence."""
        found = None if path.is_dir() else peek(path)
        if found is None:
            return None
        return f"it begins with 'GGUF', and its {TYPE} is {found.get(TYPE)!r} ({found.get(KIND)!r})"

    def adapters(self, path: Path) -> list[str]:
        """`["default"]`: a file holds one."""
        return [NAME]

    def read(self, path: Path, request: Request) -> Reading:
        """The adapter. Raises ConfigError where an option has to tell names, or how many heads there are."""
        options = {name: self.option(request, name) for name in self.options}
        found = peek(path)
        if found is None or (fault := kind_fault(found)) is not None:
            raise FormatError(f"'{path}' is no GGUF adapter: {fault if found is not None else 'it does not begin with GGUF'}")
        with open_gguf(path) as reader:
            adapter = Adapter(reader, path, options)
        states = [adapter.state] if request.adapters is None or NAME in request.adapters else []
        return Reading(states, adapter.notes)

    def write(self, path: Path, states: Sequence[AdapterState], request: Request) -> list[str]:
        """Write one adapter, with the scalings that llama.cpp does not know multiplied into lora_B."""
        packed = Packed(states[0], {name: self.option(request, name) for name in self.options})
        write_gguf(path, packed.fields, packed.tensors)
        return packed.notes
