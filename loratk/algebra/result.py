"""What an operation on adapters gives: the new adapter, how near it is to what it should be, and what had to be decided."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ..errors import ConfigError, choices, faults
from ..exchange.state import AdapterState
from ..lora.targets import matches, pattern_faults
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
        by = {module: next((pattern for pattern in patterns if matches(pattern, module)), None) for module in modules}
        for pattern in patterns:
            if not any(matches(pattern, module) for module in modules):
                found.append(f"{pattern!r} matches no module")
            elif pattern not in by.values():
                found.append(f"{pattern!r} decides about no module: patterns before it match all of its modules")
    if found:
        few = choices(modules) if len(modules) <= 12 else f"{choices(modules[:5])} and {len(modules) - 5} more"
        raise ConfigError(faults(f"These patterns do not fit the modules ({few}):", found))
    return {module: default if (chosen := by[module]) is None else patterns[chosen] for module in modules}
