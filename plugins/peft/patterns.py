"""Regular expressions that come in a file, matched in bounded time.

Python's own matcher tries one way after another, so that a pattern of thirty characters can keep it busy for years. This one follows all
ways at once: a set of places in the text, as the bits of a number, goes through the pattern from left to right. Which of several ways
Python would take does not matter here, only whether there is one. What depends on it, references to groups, is refused.
"""

from __future__ import annotations

import re
import warnings
from functools import lru_cache
from re import _constants as op  # type: ignore[attr-defined]
from re import _parser  # type: ignore[attr-defined]
from typing import Any

LONGEST = 10_000
"""Characters of a pattern."""
STEPS = 3_000_000
"""Steps that a matcher takes in all, each about a microsecond."""
PLAIN = re.compile(r"[\w.]*", re.ASCII)

_CATEGORY = {
    op.CATEGORY_DIGIT: r"\d", op.CATEGORY_NOT_DIGIT: r"\D", op.CATEGORY_SPACE: r"\s", op.CATEGORY_NOT_SPACE: r"\S",
    op.CATEGORY_WORD: r"\w", op.CATEGORY_NOT_WORD: r"\W",
}  # fmt: skip


class Matcher:
    """Matches texts with patterns, until it has taken `steps` steps; then, and for what it cannot follow, it raises ValueError."""

    def __init__(self, steps: int = STEPS) -> None:
        self._left = steps
        self._trees: dict[str, Any] = {}

    def matches(self, pattern: str, text: str, *, whole: bool = True) -> bool:
        """`re.fullmatch(pattern, text)`, or `re.match` if not `whole`, as a bool."""
        tree = self._tree(pattern)
        run = _Run(text, bool(tree.state.flags & re.IGNORECASE), self._left)
        try:
            ends = run.sequence(tree, 1)
        except RecursionError as error:
            raise ValueError("it is nested too deeply") from error
        finally:
            self._left = run.left
        return bool(ends >> len(text) & 1) if whole else bool(ends)

    def ends(self, key: str, name: str) -> bool:
        """Whether a dotted name is what `key` matches, or ends with that after a dot: PEFT's rule for rank_pattern and alpha_pattern."""
        if not PLAIN.fullmatch(key):
            return self.matches(rf"(.*\.)?({key})$", name, whole=False)
        self._left -= 1
        start = len(name) - len(key)  # its dots match any character
        fits = start == 0 or (start > 0 and name[start - 1] == ".")
        return fits and all(mine in (".", theirs) for mine, theirs in zip(key, name[start:], strict=True))

    def _tree(self, pattern: str) -> Any:
        if len(pattern) > LONGEST:
            raise ValueError(f"it has {len(pattern)} characters, more than {LONGEST}")
        if pattern not in self._trees:
            try:
                with warnings.catch_warnings(action="ignore"):  # about sets that a later Python may read otherwise
                    self._trees[pattern] = _parser.parse(pattern)
            except RecursionError as error:
                raise ValueError("it is nested too deeply") from error
            except (re.error, OverflowError) as error:
                raise ValueError(f"it is no regular expression: {error}") from error
        return self._trees[pattern]


class _Run:
    """One text on its way through a pattern. Places are bits: bit i stands between character i - 1 and character i."""

    def __init__(self, text: str, ignore_case: bool, left: int) -> None:
        self.text, self.all = text, (1 << len(text) + 1) - 1
        self.ignore_case, self.left = ignore_case, left
        self._characters: dict[Any, int] = {}

    def sequence(self, nodes: Any, places: int) -> int:
        """The places where the nodes, one after another, can end."""
        for kind, value in nodes:
            self.left -= 1
            if self.left < 0:
                raise ValueError("it takes too many steps")
            places = self._node(kind, value, places)
            if not places:
                return 0
        return places

    def _node(self, kind: Any, value: Any, places: int) -> int:
        if kind in (op.MAX_REPEAT, op.MIN_REPEAT):
            return self._repeat(*value, places)
        if kind is op.BRANCH:
            ends = 0
            for branch in value[1]:
                ends |= self.sequence(branch, places)
            return ends
        if kind is op.SUBPATTERN and not value[1] and not value[2]:
            return self.sequence(value[3], places)
        if kind is op.AT:
            return places & self._at(value)
        if kind in (op.ASSERT, op.ASSERT_NOT) and value[0] > 0:
            held = self._looking_ahead(value[1], places)
            return held if kind is op.ASSERT else places & ~held
        if kind in (op.LITERAL, op.NOT_LITERAL, op.ANY, op.IN):
            return (places & self._character(kind, value)) << 1
        raise ValueError(f"loratk does not follow its {str(kind).lower()}; write it with plain groups, sets and repetitions")

    def _repeat(self, least: int, most: Any, body: Any, places: int) -> int:
        for _ in range(least):
            after = self.sequence(body, places)
            if after == places:
                break
            places = after
        reached = fresh = places
        count = 0
        while fresh and (most is op.MAXREPEAT or count < most - least):
            fresh = self.sequence(body, fresh) & ~reached
            reached |= fresh
            count += 1
        return reached

    def _looking_ahead(self, body: Any, places: int) -> int:
        held = 0
        for place in range(len(self.text) + 1):
            if places >> place & 1 and self.sequence(body, 1 << place):
                held |= 1 << place
        return held

    def _at(self, where: Any) -> int:
        end = len(self.text)
        if where in (op.AT_BEGINNING, op.AT_BEGINNING_STRING):
            return 1
        if where is op.AT_END:
            return 1 << end | (1 << end - 1 if self.text.endswith("\n") else 0)
        if where is op.AT_END_STRING:
            return 1 << end
        word = self._mask(_single(r"\w", False))
        edges = (word ^ word << 1) & self.all
        if where in (op.AT_BOUNDARY, op.AT_NON_BOUNDARY):
            return edges if where is op.AT_BOUNDARY else self.all & ~edges
        raise ValueError(f"loratk does not follow its {str(where).lower()}")

    def _character(self, kind: Any, value: Any) -> int:
        key = kind, value if isinstance(value, int | None) else id(value)  # the tree outlives the run
        if key not in self._characters:
            self._characters[key] = self._mask(_single(_spelt(kind, value), self.ignore_case))
        return self._characters[key]

    def _mask(self, pattern: re.Pattern[str]) -> int:
        return sum(1 << found.start() for found in pattern.finditer(self.text))


@lru_cache(1000)
def _single(spelt: str, ignore_case: bool) -> re.Pattern[str]:
    return re.compile(spelt, re.IGNORECASE if ignore_case else 0)


def _spelt(kind: Any, value: Any) -> str:
    """The pattern of one character again as text."""
    if kind is op.ANY:
        return "."
    if kind is op.LITERAL:
        return re.escape(chr(value))
    if kind is op.NOT_LITERAL:
        return f"[^{re.escape(chr(value))}]"
    negated = value[0][0] is op.NEGATE
    parts = []
    for part, held in value[negated:]:
        if part is op.LITERAL:
            parts.append(re.escape(chr(held)))
        elif part is op.RANGE:
            parts.append(f"{re.escape(chr(held[0]))}-{re.escape(chr(held[1]))}")
        else:
            parts.append(_CATEGORY[held])
    return f"[{'^' * negated}{''.join(parts)}]"
