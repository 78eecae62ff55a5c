"""Rules for ranks as options have them: PATTERN=RULE:VALUE,RULE:VALUE, or PATTERN=keep."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from ..algebra.ranks import Rule

KINDS = {"rank": int, "ratio": float, "energy": float, "error": float}


def read_rules(flag: str, texts: Sequence[str], *, keep: bool = True) -> "dict[str, Rule | None]":
    """The rule of each pattern, None for `keep`, if that is allowed. Raises UsageError for no rule, and a pattern given twice."""
    from ..algebra.ranks import Rule

    found: dict[str, Rule | None] = {}
    for text in texts:
        pattern, equals, rules = text.rpartition("=")
        if not equals or not pattern:
            raise click.UsageError(f"{flag} takes PATTERN=RULE:VALUE, such as q_proj=energy:0.95, found {text!r}.")
        if pattern in found:
            raise click.UsageError(f"{flag} is given twice for {pattern!r}; join the rules with a comma.")
        given = [] if keep and rules == "keep" else [_rule(flag, rule, keep) for rule in rules.split(",")]
        if twice := [kind for kind in KINDS if sum(kind == other for other, _ in given) > 1]:
            raise click.UsageError(f"{flag}: {twice[0]} is there twice in {text!r}.")
        found[pattern] = Rule(**dict(given)) if given else None
    return found


def _rule(flag: str, text: str, keep: bool) -> tuple[str, Any]:
    kind, _, value = text.partition(":")
    if kind not in KINDS:
        raise click.UsageError(f"{flag}: a rule is {', '.join(f'{name}:VALUE' for name in KINDS)}{' or keep' * keep}, found {text!r}.")
    try:
        return kind, KINDS[kind](value)
    except ValueError:
        raise click.UsageError(f"{flag}: {kind} needs a {'whole ' * (kind == 'rank')}number, found {value!r}.") from None
