"""Keys of tensors in all their spellings, to the path of a module and the name of a parameter. Split on dots, never by substring."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

COMPONENTS = (
    "unet", "transformer", "transformer_2", "text_encoder", "text_encoder_2", "text_encoder_3", "prior", "controlnet", "diffusion_model",
)  # fmt: skip
"""The parts of a pipeline that keys begin with; the last is what other tools call the transformer or unet."""

ENDS = {
    ("lora_A", "weight"): "lora_A", ("lora_B", "weight"): "lora_B", ("lora_B", "bias"): "lora_bias",
    ("lora_magnitude_vector",): "magnitude", ("lora_magnitude_vector", "weight"): "magnitude", ("alpha",): "alpha",
}  # fmt: skip
HALVES = {"down": "lora_A", "up": "lora_B"}
OLD = ("lora", "lora_linear_layer")
TEXT = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}


@dataclass
class Keys:
    """The keys of a file by module and parameter; those of no module; adapter names in them; whether old spellings are among them."""

    modules: dict[str, dict[str, str]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    names: set[str] = field(default_factory=set)
    old: int = 0
    bare: int = 0


def sort_keys(keys: Iterable[str]) -> Keys:
    """All keys of a file."""
    found = Keys()
    for key in keys:
        split = split_key(key)
        if split is None:
            found.faults.append(f"tensor {key!r} is none that loratk knows in such a file")
            continue
        module, parameter, old, name = split
        held = found.modules.setdefault(module, {})
        if parameter in held:
            found.faults.append(f"tensors {held[parameter]!r} and {key!r} are both the {parameter} of {module!r}")
        held[parameter] = key
        found.old += old
        found.bare += module.partition(".")[0] not in COMPONENTS
        found.names |= {name} if name else set()
    if len(found.names) > 1:
        found.faults.append(f"keys have the names of several adapters, {', '.join(sorted(map(repr, found.names)))}")
    return found


def split_key(key: str) -> tuple[str, str, bool, str] | None:
    """Module, parameter, whether its spelling is an old one, and the adapter's name in it ("" mostly); None for a key of another format."""
    parts = key.split(".")
    name = ""
    if len(parts) > 3 and parts[-1] == "weight" and parts[-3] in ("lora_A", "lora_B", "lora_magnitude_vector"):
        name = parts.pop(-2)  # a state dict saved as it is in memory
    old = "processor" in parts
    parts = [part for part in parts if part != "processor"]
    for end, parameter in ENDS.items():
        if len(parts) > len(end) and tuple(parts[-len(end) :]) == end:
            path = parts[: -len(end)]
            if parameter == "alpha" and len(path) > 1:
                path, tail = _undone(path)
                old = old or tail
            elif parameter == "magnitude" and path[-1] == "to_out" and path[0] not in COMPONENTS[3:6]:
                path = [*path, "0"]
            return (".".join(path), parameter, old, name) if path[0] in COMPONENTS or old else None
    if len(parts) > 3 and parts[-1] == "weight" and parts[-2] in HALVES:
        path, tail = _undone(parts[:-2])
        if tail:
            return ".".join(path), HALVES[parts[-2]], True, ""
    return None


def _undone(path: list[str]) -> tuple[list[str], bool]:
    """A path without the part that old spellings add (`to_q.lora`, `to_q_lora`), and whether it had one."""
    if path[-1] in OLD and len(path) > 1:
        return path[:-1], True
    if not path[-1].endswith("_lora") or path[-1] == "_lora":
        return path, False
    last = path[-1].removesuffix("_lora")
    if path[0].startswith("text_encoder"):
        return [*path[:-1], TEXT.get(last, last)], True
    return [*path[:-1], last, *(["0"] if last == "to_out" else [])], True
