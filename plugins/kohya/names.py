"""Names of modules: `lora_unet_down_blocks_0_...`, made of a prefix and a path whose dots became underscores, and back.

The way back is not unique (`q_proj` or `q.proj`?), so it goes through the names of a base model, and is never guessed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from loratk.errors import ConfigError, FormatError, choices, faults
from loratk.exchange import Base

PARTS = {
    "lora_unet": ("unet", "transformer", "diffusion_model"), "lora_te": ("text_encoder",), "lora_te1": ("text_encoder",),
    "lora_te2": ("text_encoder_2",), "lora_te3": ("text_encoder_3",), "lycoris": (), "lora_prior_unet": ("prior",),
}  # fmt: skip
"""The prefixes, and what a pipeline calls the part of it that each is for."""


def prefix_of(name: str) -> str | None:
    """The prefix of a module's name as files have it, or None."""
    return max((prefix for prefix in PARTS if name.startswith(f"{prefix}_")), key=len, default=None)


def resolve(names: Iterable[str], base: Base | None) -> tuple[dict[str, tuple[str, str]], list[str]]:
    """For each name the path of the module in the base and the prefix that it lost, ("", as it is) where nothing is known; and notes.

    Raises FormatError where no name is one of the base's: it is another model.
    """
    names = list(names)
    raw = {name: (name, "") for name in names}
    if base is None:
        flat = [name for name in names if "." not in name]
        said = "kept as the file has them, with '_' for '.'; --base with the model's weights gives back the paths"
        return raw, [f"names of modules ({len(flat)}, such as {flat[0]!r}) are {said}"] if flat else []
    paths = _flat(base.modules())
    found: dict[str, tuple[str, str]] = {}
    several, unknown = [], []
    for name in names:
        prefix = prefix_of(name)
        fitting = sorted(_fitting(name, prefix, paths))
        if len(fitting) == 1:
            found[name] = fitting[0], prefix or ""
        else:
            (several if fitting else unknown).append(name)
    if names and len(unknown) == len(names):
        raise FormatError(
            f"no module of the base '{base.path}' has one of the names {choices(names[:3])}; its modules are such as "
            f"{choices(base.modules()[:3])}. Is it the model that the adapter was made for?"
        )
    notes = [f"{len(found)} of {len(names)} names of modules were found in the base '{base.path}'"]
    notes += [f"{name!r} may be {choices(_fitting(name, prefix_of(name), paths))}; it keeps this name, rename it" for name in several]
    if unknown:
        notes.append(f"{len(unknown)} names, such as {unknown[0]!r}, are not in the base and stay as they are")
    return raw | found, notes


def _flat(modules: Iterable[str]) -> dict[str, list[str]]:
    paths: dict[str, list[str]] = {}
    for module in modules:
        paths.setdefault(module.replace(".", "_"), []).append(module)
    return paths


def _fitting(name: str, prefix: str | None, paths: Mapping[str, list[str]]) -> set[str]:
    """The paths that a name may stand for: with its prefix taken off, alone or below the part that the prefix is for."""
    if prefix is None:
        return set(paths.get(name.replace(".", "_"), ()))
    rest = name.removeprefix(f"{prefix}_")
    return {path for head in ("", *(f"{part}_" for part in PARTS[prefix])) for path in paths.get(head + rest, ())}


class Namer:
    """Names for files: `name(module, record)` for each, `check()` at the end."""

    def __init__(self, modules: Collection[str], prefix: str | None) -> None:
        if prefix is not None and (not prefix.isidentifier()):
            raise ConfigError(f"a prefix must be letters, digits and '_', such as {choices(list(PARTS)[:3])}, found {prefix!r}")
        self._prefix = prefix
        self._several = any(module.split(".")[0] == "text_encoder_2" for module in modules)
        self._owners: dict[str, list[str]] = {}
        self._plain: list[str] = []

    def name(self, module: str, record: Mapping[str, Any]) -> str:
        """The name of a module in a file."""
        name = self._name(module, record)
        self._owners.setdefault(name, []).append(module)
        return name

    def _name(self, module: str, record: Mapping[str, Any]) -> str:
        if "." not in module and prefix_of(module) is not None and self._prefix is None:
            return module
        head, _, rest = module.partition(".")
        known = [prefix for prefix, parts in PARTS.items() if head in parts and rest]
        prefix = self._prefix or record.get("prefix") or (known[-1 if self._several else 0] if known else None)
        if prefix is None:
            prefix = "lycoris"
            self._plain.append(module)
        path = rest if known and (prefix in known or self._prefix) else module
        return f"{prefix}_{path.replace('.', '_')}"

    def check(self) -> list[str]:
        """Notes. Raises ConfigError that lists each two modules with one name."""
        if found := [f"{choices(modules)} are all named {name!r}" for name, modules in self._owners.items() if len(modules) > 1]:
            raise ConfigError(faults("names of modules cannot be told apart with '_' for '.'; rename some of them:", found))
        if not self._plain:
            return []
        return [f"{len(self._plain)} modules, such as {self._plain[0]!r}, got the prefix 'lycoris'; the option prefix gives another"]
