"""Which modules a config means.

A pattern is one of

- `all-linear`: every module whose layer type is linear (a linear layer, a fused projection);
- `re:...`: a regular expression that matches the whole dotted name;
- a glob with `*`, `?` or `[`: matches the whole dotted name, `*` also across dots;
- anything else: the dotted name itself, or its end after a dot (`fc` means `fc` and `block.0.fc`, not `bigfc`).

Case counts. A module made of column blocks, such as a fused q-k-v projection, can be meant as a whole (`attn.qkv`) or
block by block (`attn.qkv.q`).
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, choices, faults
from ..nn import Module

if TYPE_CHECKING:
    from ..plugins import Registry
    from .config import LoraConfig
    from .layer_types import LayerType

ALL_LINEAR = "all-linear"


def matches(pattern: str, name: str, *, linear: bool = False) -> bool:
    """Whether a pattern matches a dotted name; `linear` says whether that module's layer type is linear."""
    if pattern == ALL_LINEAR:
        return linear
    if pattern.startswith("re:"):
        return re.fullmatch(pattern[3:], name) is not None
    if any(character in pattern for character in "*?["):
        return fnmatchcase(name, pattern)
    return name == pattern or name.endswith("." + pattern)


def pattern_faults(field: str, pattern: Any) -> Iterator[str]:
    """What is wrong with a pattern."""
    if not isinstance(pattern, str) or not pattern:
        yield f"{field} must hold patterns (non-empty strings), found {pattern!r}"
    elif pattern.startswith("re:"):
        try:
            re.compile(pattern[3:])
        except re.error as error:
            yield f"{field} holds {pattern!r}, which is no regular expression: {error}"


def deciding(patterns: Iterable[str], modules: Sequence[str]) -> tuple[dict[str, str | None], list[str]]:
    """By module the first pattern that matches it, or None; and what is wrong: each pattern that decides about no module."""
    patterns = list(patterns)
    by = {module: next((pattern for pattern in patterns if matches(pattern, module)), None) for module in modules}
    found = []
    for pattern in patterns:
        if not any(matches(pattern, module) for module in modules):
            found.append(f"{pattern!r} matches no module")
        elif pattern not in by.values():
            found.append(f"{pattern!r} decides about no module: patterns before it match all of its modules")
    return by, found


def few(modules: Sequence[str]) -> str:
    """The names of modules for a message: all of a dozen, else some."""
    return choices(modules) if len(modules) <= 12 else f"{choices(modules[:5])} and {len(modules) - 5} more"


@dataclass(frozen=True)
class Candidate:
    """A module that an adapter can attach to: its dotted name, its layer type, and its column blocks."""

    name: str
    module: Module
    layer_type: "LayerType[Any]"
    blocks: Mapping[str, tuple[int, int]]

    def block_name(self, block: str) -> str:
        """The dotted name of a block; that of the module if it has only one, unnamed block."""
        return ".".join(part for part in (self.name, block) if part)


@dataclass(frozen=True)
class Choice:
    """One line of the dry run: a block, and the patterns that decided about it."""

    name: str
    layer_type: str
    shape: tuple[int, int]
    chosen: bool
    by: str


def find_candidates(modules: Iterable[tuple[str, Module]], registry: "Registry") -> list[Candidate]:
    """All modules an adapter can attach to, in order."""
    found = []
    for name, module in modules:
        layer_type = registry.layer_type(module)
        if layer_type is not None:
            found.append(Candidate(name, module, layer_type, layer_type.blocks(module)))
    return found


def explain(candidates: Sequence[Candidate], config: "LoraConfig") -> list[Choice]:
    """For each block whether it gets an adapter, and which pattern said so: `select` without changing or refusing anything."""
    lines = []
    for candidate in candidates:
        d, _ = candidate.layer_type.shape(candidate.module)
        for block, (start, stop) in candidate.blocks.items():
            hit, out = (_first(patterns, candidate, block) for patterns in (config.targets, config.exclude))
            by = f"exclude {out!r}" if hit and out else f"targets {hit!r}" if hit else "no pattern"
            name = candidate.block_name(block)
            lines.append(Choice(name, candidate.layer_type.name, (d, stop - start), bool(hit and not out), by))
    return lines


def _first(patterns: Iterable[str], candidate: Candidate, block: str) -> str | None:
    linear, names = candidate.layer_type.linear, {candidate.name, candidate.block_name(block)}
    return next((p for p in patterns if any(matches(p, name, linear=linear) for name in names)), None)


def select(modules: Sequence[tuple[str, Module]], config: "LoraConfig", registry: "Registry") -> list[tuple[Candidate, list[str]]]:
    """The modules that get an adapter, each with its chosen blocks. Raises ConfigError, listing each pattern without effect."""
    candidates = find_candidates(modules, registry)
    chosen = [(c, [b for b in c.blocks if _first(config.targets, c, b) and not _first(config.exclude, c, b)]) for c in candidates]
    chosen = [(candidate, blocks) for candidate, blocks in chosen if blocks]
    found = []
    everything = [(candidate, list(candidate.blocks)) for candidate in candidates]
    pools = dict.fromkeys(("targets", "exclude"), everything)
    pools |= dict.fromkeys(("rank_pattern", "alpha_pattern", "layer_pattern", "share"), chosen)
    for field, pool in pools.items():
        for pattern in getattr(config, field):
            if not any(_first([pattern], candidate, block) for candidate, blocks in pool for block in blocks):
                found.append(f"{field}: {pattern!r} matches nothing{_hint(pattern, modules, registry)}")
    if not chosen and not found:
        found.append(f"exclude takes away all that targets {list(config.targets)} matched")
    if found:
        names = ", ".join(f"{c.name or '(the module itself)'} ({c.layer_type.name})" for c in candidates[:20]) or "none"
        more = f" and {len(candidates) - 20} more" if len(candidates) > 20 else ""
        raise ConfigError(faults("This config does not fit the model:", [*found, f"modules that can have an adapter: {names}{more}"]))
    return chosen


def _hint(pattern: str, modules: Sequence[tuple[str, Module]], registry: "Registry") -> str:
    hit = [(n, m) for n, m in modules if pattern != ALL_LINEAR and matches(pattern, n) and registry.layer_type(m) is None]
    if not hit:
        return ""
    return f" that can have an adapter ({hit[0][0]!r} is a {type(hit[0][1]).__name__}, for which no layer type is registered)"
