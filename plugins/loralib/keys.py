"""Whose factor a tensor is, by its name: as loralib names them, and as PEFT does."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

MARKS = {
    "lora_A": "lora_A",
    "lora_B": "lora_B",
    "lora_embedding_A": "lora_A",
    "lora_embedding_B": "lora_B",
    "lora_magnitude_vector": "magnitude",
}
"""Parts of names that say what a tensor is, and the parameter it becomes."""
PEFT = ("base_model", "model")


@dataclass
class Sorted:
    """Tensors by module and parameter; which modules are look-up tables by the names of their factors; what was left of the names."""

    modules: dict[str, dict[str, str]] = field(default_factory=dict)
    tables: set[str] = field(default_factory=set)
    stripped: set[str] = field(default_factory=set)
    others: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    @property
    def peft(self) -> bool:
        """Whether the names are PEFT's."""
        return ".".join(PEFT) in self.stripped


def sort_names(names: Collection[str]) -> Sorted:
    """Find the module and parameter of each name.

    `<module>.lora_A` and `<module>.bias` are loralib's; PEFT's begin with base_model.model and end in `.weight`, perhaps with the adapter's
    name before it. What has neither form is among `others`.
    """
    found = Sorted()
    for name in names:
        parts = name.split(".")
        if tuple(parts[:2]) == PEFT:
            parts = parts[2:]
            found.stripped.add(".".join(PEFT))
        place = next((at for at in range(len(parts) - 1, -1, -1) if parts[at] in MARKS), None)
        if place is None:
            if parts[-1] == "bias":
                if "base_layer" in parts[-2:-1]:
                    del parts[-2]
                    found.stripped.add("base_layer")
                _add(found, ".".join(parts[:-1]), "bias", name)
            else:
                found.others.append(name)
            continue
        parameter = _parameter(parts[place], parts[place + 1 :], found.stripped)
        if parameter is None:
            found.others.append(name)
            continue
        module = ".".join(parts[:place])
        _add(found, module, parameter, name)
        if "embedding" in parts[place]:
            found.tables.add(module)
    for module in [path for path in found.modules if path.endswith(".conv") and path.removesuffix(".conv") in found.modules]:
        for parameter, name in found.modules.pop(module).items():  # loralib wraps a convolution and calls the inner one so
            _add(found, module.removesuffix(".conv"), parameter, name)
    return found


def _parameter(mark: str, tail: list[str], stripped: set[str]) -> str | None:
    """The parameter of a mark and what follows it: nothing, the adapter's name, `weight` or `bias`."""
    ending = tail.pop() if tail and tail[-1] in ("weight", "bias") else "weight"
    if len(tail) > 1 or (ending == "bias" and mark != "lora_B"):
        return None
    stripped |= set(tail)
    return "lora_bias" if ending == "bias" else MARKS[mark]


def _add(found: Sorted, module: str, parameter: str, name: str) -> None:
    held = found.modules.setdefault(module, {})
    if parameter in held:
        found.faults.append(f"{held[parameter]!r} and {name!r} are both {parameter} of module {module!r}")
    held[parameter] = name
