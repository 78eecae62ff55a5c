"""The names of tensors in a PEFT file, taken apart at their dots: never by looking for a piece of text in them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

PREFIX = ("base_model", "model")
ARTEFACTS = ("_orig_mod", "_fsdp_wrapped_module")
"""What torch.compile and FSDP leave in names; DDP's `module` counts in front of PEFT's prefix only, as models have parts of that name."""
LONGEST = 4096

PARAMETERS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "LORA": {
        "lora_A": ("weight",),
        "lora_B": ("weight", "bias"),
        "lora_embedding_A": ("",),
        "lora_embedding_B": ("",),
        "lora_magnitude_vector": ("", "weight"),
    },
    "ADALORA": {"lora_A": ("",), "lora_B": ("",), "lora_E": ("",), "ranknum": ("",)},
    "VERA": {"vera_lambda_b": ("",), "vera_lambda_d": ("",), "vera_A": ("",), "vera_B": ("",)},
    "LOHA": dict.fromkeys(("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"), ("",)),
    "LOKR": dict.fromkeys(("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"), ("",)),
    "IA3": {"ia3_l": ("",)},
}
"""By PEFT's name of a method its parameters, each with the last parts that may follow it in a name ("" for none)."""
TOKENS = "trainable_tokens_delta"
BASE = "base_layer"
"""What PEFT calls the wrapped module in paths."""


@dataclass(frozen=True)
class Key:
    """A name: the module's path without prefix and artefacts, PEFT's own parameter ("" for the base's) and the last part after it."""

    module: str
    parameter: str
    leaf: str


@dataclass
class Stripped:
    """What was taken out of names, for a note."""

    artefacts: Counter[str] = field(default_factory=Counter)
    adapters: Counter[str] = field(default_factory=Counter)
    bare: list[str] = field(default_factory=list)
    """Names without PEFT's prefix."""

    def notes(self, total: int) -> Iterable[str]:
        """A line for each kind of thing."""
        for part, count in self.artefacts.items():
            yield f"{part!r} was stripped from {count} of {total} names: the training program left it there"
        for name, count in self.adapters.items():
            yield f"the adapter's name {name!r} was stripped from {count} of {total} names, where PEFT leaves it out"
        if self.bare:
            yield f"{len(self.bare)} of {total} names, such as {self.bare[0]!r}, lack PEFT's prefix 'base_model.model.'; taken as they are"


def parse(name: str, method: str, stripped: Stripped, wrapped: Collection[str] = ()) -> Key:
    """A name, for PEFT's method; what is taken out of it goes to `stripped`. `wrapped` are names that stand for an adapter's in raw dumps.

    Raises ValueError for a name that no module can have.
    """
    if len(name) > LONGEST or not name.isprintable():
        raise ValueError(f"has a name of {len(name)} characters" if name.isprintable() else "has a name with control characters")
    parts = name.split(".")
    if not all(parts):
        raise ValueError("has a name with an empty part")
    parts = _unprefixed(name, parts, stripped)
    markers = PARAMETERS.get(method, {})
    for place in range(len(parts) - 1, -1, -1):
        if parts[place] not in markers:
            continue
        leaves, tail = markers[parts[place]], parts[place + 1 :]
        leaf = tail[-1] if tail and tail[-1] in leaves else ""
        rest = tail[:-1] if leaf else tail
        if leaf in leaves and len(rest) <= 1 and not {"weight", "bias"} & set(rest):
            stripped.adapters.update(rest)
            return Key(".".join(parts[:place]), parts[place], leaf)
    for token in range(len(parts) - 1, 0, -1):
        if parts[token] == TOKENS and parts[token - 1] == "token_adapter" and len(parts) - token <= 2:
            stripped.adapters.update(parts[token + 1 :])
            return Key(".".join(parts[:token]), TOKENS, "")
    if "modules_to_save" in parts[:-1]:
        place = parts.index("modules_to_save")
        inner = parts[place + 1 :]
        if len(inner) > 1 and inner[0] in wrapped:
            stripped.adapters.update(inner[:1])
            inner = inner[1:]
        parts = parts[:place] + inner
    return Key(".".join(parts[:-1]), "", parts[-1])


def _unprefixed(name: str, parts: list[str], stripped: Stripped) -> list[str]:
    front = next((place for place, part in enumerate(parts) if part not in (*ARTEFACTS, "module")), 0)
    has_prefix = parts[front] == PREFIX[0]
    found = [part for place, part in enumerate(parts) if part in ARTEFACTS or (part == "module" and place < front and has_prefix)]
    stripped.artefacts.update(found)
    parts = [part for place, part in enumerate(parts) if part not in ARTEFACTS and not (part == "module" and place < front and has_prefix)]
    if parts[:2] == list(PREFIX) and len(parts) > 2:
        return parts[2:]
    if parts[:1] == [PREFIX[0]] and parts[1:2] in (["vera_A"], ["vera_B"]):
        return parts[1:]
    stripped.bare.append(name)
    return parts


def spell(module: str, parameter: str, leaf: str = "") -> str:
    """The name of a tensor as PEFT writes it; the inverse of `parse`."""
    return ".".join(part for part in (*PREFIX, module, parameter, leaf) if part)


def unwrapped(path: str) -> str:
    """A path as it is without PEFT's wrappers."""
    return ".".join(part for part in path.split(".") if part != BASE)


def looks_like(names: Iterable[str]) -> str | None:
    """PEFT's method by the names in a file: the first of them with PEFT's prefix and a parameter of it, or None."""
    for name in names:
        if PREFIX[0] not in name.split(".")[:4]:
            continue
        for method in PARAMETERS:
            try:
                key = parse(name, method, Stripped())
            except ValueError:
                continue
            if key.parameter:
                return method
    return None
