"""An AdapterState as the metadata and tensors of a GGUF adapter."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isclose
from typing import Any

import numpy as np

from loratk.errors import ConfigError, choices, faults
from loratk.exchange import AdapterState
from loratk.exchange.portable import scaled

from .header import MAX_NAME, fits_blocks
from .metadata import ALPHA, ARCHITECTURE, KIND, TYPE, to_fields
from .names import STACK, TABLES, Names
from .options import Heads, choice
from .q8_0 import dequantize, quantize
from .reading import EMBEDDING
from .rows import HEAD_KEYS, interleave
from .stacking import Expert, stacked
from .values import Value

HALF = 65504.0
"""The largest number of float16."""


@dataclass
class Part:
    """A tensor of the base with its factors: lora_A (d, r), lora_B (r, k), or stacks of them."""

    record: Mapping[str, Any]
    held: dict[str, np.ndarray]
    dtypes: dict[str, str] = field(default_factory=dict)

    @property
    def wanted(self) -> float:
        """The alpha under which nothing has to be folded."""
        return float(self.record["scaling"]) * int(self.record["rank"])


class Packed:
    """`fields` and `tensors` of a file, and notes. Raises ConfigError with everything that the format cannot express."""

    def __init__(self, state: AdapterState, options: Mapping[str, Any]) -> None:
        self.notes: list[str] = []
        self._found: list[str] = []
        self._architecture = str(options["architecture"] or state.metadata.get(ARCHITECTURE, ""))
        if not self._architecture:
            raise ConfigError(
                "a GGUF adapter names the architecture of its base, which must be that of the base's own GGUF file; "
                f"say it with the option architecture=NAME: one of {choices(TABLES)}, or another with names=FILE"
            )
        self._names = Names(self._architecture, options["names"])
        self._small = choice("quantize", options["quantize"], {"q8_0": True})
        keys = {name: state.metadata.get(f"{self._architecture}.{key}", "") for name, key in HEAD_KEYS.items()}
        known = {name: int(text) for name, text in keys.items() if text.isascii() and text.isdecimal() and len(text) < 7 and int(text)}
        self._heads = Heads(self._architecture, "no" if self._names.raw else options["permute"], options, known)
        parts = self._parts(state)
        alpha = self._fold(parts)
        self.tensors = self._tensors(parts)
        self.fields = self._fields(state, alpha)
        if self._found:
            raise ConfigError(faults(f"adapter {state.name!r} cannot be a GGUF adapter for {self._architecture!r}:", self._found))
        if self._architecture not in TABLES and not self._names.raw:
            self.notes.append(
                f"loratk does not know the architecture {self._architecture!r}: whether llama.cpp reorders its q and k is up to permute=yes"
            )

    def _parts(self, state: AdapterState) -> dict[str, Part]:
        """The factors by tensor of the base, experts of one stack joined."""
        singles: dict[str, tuple[str, Part]] = {}
        experts: dict[str, dict[int, Expert]] = {}
        unnamed = []
        for module, held in state.parameters().items():
            record = state.modules[module]
            if set(held) != {"lora_A", "lora_B"}:
                self._found.append(f"module {module!r} must have lora_A and lora_B alone, found {choices(held)}")
                continue
            if "columns" in record:
                self._found.append(f"module {module!r} is a part of a fused projection, which llama.cpp adapts as a whole")
                continue
            part, named = Part(record, dict(held), dict(record.get("dtypes", {}))), self._names.tensor(module)
            if named is None:
                unnamed.append(module)
            elif named[1] is not None:
                experts.setdefault(named[0], {})[named[1]] = module, record, part.held
            elif named[0] in singles:
                self._found.append(f"modules {singles[named[0]][0]!r} and {module!r} are both {named[0]!r}")
            else:
                singles[named[0]] = module, part
        if unnamed:
            some = f"{choices(unnamed[:4])}{f' and {len(unnamed) - 4} more' if len(unnamed) > 4 else ''}"
            self._found.append(f"{some} have no tensor in the table of names; choose others (--select), or name them: names=FILE")
        parts = {tensor: part for tensor, (_, part) in singles.items()}
        for tensor, group in experts.items():
            if tensor in parts:
                self._found.append(f"{tensor!r} is given as a stack and expert by expert")
            elif (stack := stacked(tensor, group, self._found)) is not None:
                parts[tensor] = Part(*stack)
        for tensor, part in parts.items():
            self._check(tensor, part)
        return parts

    def _check(self, tensor: str, part: Part) -> None:
        layer, stack = part.record.get("layer_type", "linear"), "experts" in part.record
        if layer == "embedding" and tensor != EMBEDDING:
            self._found.append(f"{tensor!r} is an embedding; llama.cpp has that of the tokens alone")
        if stack and not tensor.endswith(STACK):
            self._found.append(f"{tensor!r} is no stack of experts in llama.cpp")
        if not stack and tensor.endswith(STACK):
            self._found.append(f"{tensor!r} is a stack of experts in llama.cpp, and the adapter has one alone")
        if len(f"{tensor}.weight.lora_a".encode()) > MAX_NAME or not tensor.isprintable():
            self._found.append(f"{tensor!r} must be printable and, with '.weight.lora_a', of at most {MAX_NAME} bytes")

    def _fold(self, parts: Mapping[str, Part]) -> float:
        """The file's alpha: the one that fits most tensors. The others get what differs into lora_B."""
        wanted = Counter(part.wanted for part in parts.values() if 1e-30 < abs(part.wanted) < 1e30)
        alpha = float(np.float32(wanted.most_common(1)[0][0])) if wanted else 1.0
        folded = []
        for tensor, part in parts.items():
            factor = part.wanted / alpha
            if not isclose(factor, 1.0, rel_tol=1e-6):
                part.held["lora_B"] = scaled(part.held["lora_B"], factor, part.dtypes, "lora_B")
                folded.append(tensor)
        if folded:
            some = f"{choices(folded[:3])}{f' and {len(folded) - 3} more' if len(folded) > 3 else ''}"
            self.notes.append(f"alpha {alpha:g} gives the scaling of {len(parts) - len(folded)} tensors; that of {some} is in lora_b")
        return alpha

    def _tensors(self, parts: Mapping[str, Part]) -> dict[str, tuple[str, np.ndarray]]:
        """Every tensor with the type to store it as, in the order of blocks."""
        made: dict[str, tuple[str, np.ndarray]] = {}
        for tensor in sorted(parts, key=_order):
            part = parts[tensor]
            lora_a, lora_b = part.held["lora_A"], part.held["lora_B"]
            heads = self._heads.of(tensor, lora_b.shape[-1], self._found)
            if heads is not None:
                lora_b = interleave(lora_b, heads)
            a = lora_a if tensor == EMBEDDING else lora_a.swapaxes(-1, -2)
            for half, parameter, array in (("lora_a", "lora_A", a), ("lora_b", "lora_B", lora_b.swapaxes(-1, -2))):
                name = f"{tensor}.weight.{half}"
                made[name] = self._typed(name, np.ascontiguousarray(array), part.dtypes.get(parameter))
        self._tell(made)
        return made

    def _typed(self, name: str, array: np.ndarray, mark: str | None) -> tuple[str, np.ndarray]:
        with np.errstate(over="ignore"):
            single = array if array.dtype == np.float16 else array.astype(np.float32)
        if not np.isfinite(single).all():
            self._found.append(f"{name!r} holds numbers that float32 does not, after its scaling was multiplied in")
        if not self._small:
            return "BF16" if mark else "F16" if array.dtype == np.float16 else "F32", single
        if fits_blocks("Q8_0", array.shape) and np.abs(single).max(initial=0) < 127 * HALF:
            return "Q8_0", single
        fits = np.abs(single).max(initial=0) <= HALF
        return ("F16", single.astype(np.float16)) if fits else ("F32", single.astype(np.float32))

    def _tell(self, made: Mapping[str, tuple[str, np.ndarray]]) -> None:
        types = Counter(type for type, _ in made.values())
        self.notes.append("tensors: " + ", ".join(f"{count} {type}" for type, count in sorted(types.items())))
        if self._small and types["Q8_0"]:
            blocks = [array.astype(np.float64) for type, array in made.values() if type == "Q8_0"]
            whole = sum(np.sum(array**2) for array in blocks)
            lost = sum(np.sum((array - dequantize(quantize(array)).reshape(array.shape)) ** 2) for array in blocks)
            self.notes.append(f"8-bit blocks (q8_0) leave out {np.sqrt(lost / whole) if whole else 0:.2%} of what they hold")

    def _fields(self, state: AdapterState, alpha: float) -> dict[str, Value]:
        fields = {
            ARCHITECTURE: Value("string", self._architecture),
            TYPE: Value("string", "adapter"),
            KIND: Value("string", "lora"),
            ALPHA: Value("f32", alpha),
        }
        named = {} if state.name == "default" or "general.name" in state.metadata else {"general.name": state.name}
        counts = {f"{self._architecture}.{HEAD_KEYS[name]}": str(count) for name, count in self._heads.used.items()}
        if counts:
            heads = ", ".join(f"{name} {count}" for name, count in sorted(self._heads.used.items()))
            self.notes.append(f"rows of q and k are in llama.cpp's order ({heads})")
        return fields | to_fields(state.metadata | named | counts, self._found)


def _order(tensor: str) -> list[tuple[int, int, str]]:
    """Blocks by number, what lies beside them first."""
    numbers = [part.isascii() and part.isdecimal() and len(part) < 10 for part in tensor.split(".")]
    return [(1, int(part), "") if number else (0, 0, part) for part, number in zip(tensor.split("."), numbers, strict=True)]
