"""What an operation on adapters gives: the new adapter, how near it is to what it should be, and what had to be decided."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ..errors import ConfigError, faults
from ..exchange.state import AdapterState
from ..lora.targets import deciding, few, pattern_faults
from .certificate import Certificate
from .ranks import Rule

Track = Callable[[Sequence[str], str], Iterable[str]]
"""Given the modules and a few words, yields the modules: for a progress bar."""


@dataclass(frozen=True, eq=False)
class Result:
    """An adapter, its certificate, and a line for each thing that was decided on the way."""

    state: AdapterState
    certificate: Certificate
    notes: list[str] = field(default_factory=list)


def untracked(items: Sequence[str], what: str) -> Iterable[str]:
    """The items as they are: no progress bar."""
    return items


def rules_for(modules: Sequence[str], default: Rule | None, patterns: Mapping[str, Rule | None]) -> dict[str, Rule | None]:
    """The rule of each module: that of the first pattern that matches (as in `loratk.lora.targets`), else the default.

    Raises ConfigError that lists each pattern that is none, or that decides about no module.
    """
    found = [fault for pattern in patterns for fault in pattern_faults("patterns", pattern)]
    if not found:
        by, found = deciding(patterns, modules)
    if found:
        raise ConfigError(faults(f"These patterns do not fit the modules ({few(modules)}):", found))
    return {module: default if (chosen := by[module]) is None else patterns[chosen] for module in modules}
