"""Which adapters one call of a model uses instead of the active ones: for that call alone, in the thread that makes it."""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from contextvars import Token
from functools import lru_cache
from typing import Any

import numpy as np

from ..errors import ConfigError, ShapeError
from ..nn.variant import Variant, variant
from .weights import as_weights

Choice = str | Mapping[str, float] | None
"""An adapter by its name, several with weights, or None for the base alone."""
MIXED = "rows"


class PerRow:
    """A choice of adapters for each row of a batch, axis 0 of what the model is given.

    A layer must see the same rows on its own axis 0, which is checked by their number. With `flattened` one may also see each row's
    parts one after the other, so many for every row, as after reshaping (n, t, d) to (n * t, d).
    """

    def __init__(self, choices: Iterable[Choice], *, flattened: bool = False) -> None:
        self.choices, self.flattened = tuple(choices), flattened


Selected = Choice | Sequence[Choice] | PerRow


class Owner:
    """What a model and its layers have in common, so that a choice made for one model is not taken for another's."""


class Groups:
    """Different groups of adapters with weights, all names among them, and a key."""

    __slots__ = ("key", "names", "weights")

    def __init__(self, weights: Sequence[Mapping[str, float]], key: Hashable = None) -> None:
        self.weights, self.names = tuple(weights), frozenset(name for group in weights for name in group)
        self.key = tuple(tuple(group.items()) for group in self.weights) if key is None else key


class Selection:
    """A choice in its final form: different groups of adapters with weights, and the group of each row, or None for all rows one group.

    A row without adapters has the index -1; `bare` says whether there is one. Modules answer alike for selections of one `key`, and one
    layer knows the same of batches of one `mix`, whichever row has which adapters.
    """

    __slots__ = ("bare", "flattened", "groups", "index", "key", "mix", "names")

    def __init__(self, groups: "Groups", index: np.ndarray | None = None, *, bare: bool = False, flattened: bool = False) -> None:
        self.groups, self.index, self.bare, self.flattened = groups.weights, index, bare, flattened
        self.names, self.mix = groups.names, (bare, groups.key)
        self.key: Hashable = MIXED if index is not None else self.mix

    def rows(self, shape: Sequence[int], where: str) -> np.ndarray:
        """The group of each row of an input or output of that shape. Raises ShapeError, which names the layer."""
        assert self.index is not None
        n, found = len(self.index), shape[0] if shape else None
        if found == n:
            return self.index
        if self.flattened and found and n and found % n == 0:
            return np.repeat(self.index, found // n)
        more = " or a multiple of them" if self.flattened else ""
        raise ShapeError(
            f"{n} rows were given adapters; layer {where!r} must have them on axis 0{more}, found shape {tuple(shape)}. Give one name for "
            "each row of the batch (several adapters for all rows are a dict of weights). If a module before it made (n, t, d) into "
            "(n * t, d), pass PerRow(names, flattened=True); if rows are moved to another axis, they cannot have their own adapters here."
        )


def selection(adapter: Any) -> Selection:
    """The selection that a caller means. Raises ConfigError."""
    if adapter is None:
        return NOTHING
    if isinstance(adapter, str):
        return _named(adapter)
    if isinstance(adapter, Mapping):
        return Selection(Groups([as_weights(adapter)]))
    if isinstance(adapter, np.ndarray):
        adapter = adapter.tolist()
    if not isinstance(adapter, (PerRow, list, tuple)):
        raise ConfigError(
            "adapter must be a name, a dict of names and weights, None for the base alone, or a list with one of these for each row, "
            f"found {adapter!r}."
        )
    given = adapter if isinstance(adapter, PerRow) else PerRow(adapter)
    found: Sequence[Any] = given.choices
    try:
        different = set(found)
        plain = all(choice is None or isinstance(choice, str) for choice in different)
    except TypeError:  # dicts among them
        plain = False
    if plain:  # the rule, so it is quick
        ordered: tuple[Any, ...] = tuple(sorted(different - {None}))
        groups, none = _singles(ordered), None
    else:
        found, none = [_key(each, given) for each in found], ()
        ordered = tuple(sorted({key for key in found if key}))
        groups = Groups([dict(key) for key in ordered])
    places = {**dict(zip(ordered, range(len(ordered)), strict=True)), none: -1}
    index = np.fromiter(map(places.__getitem__, found), np.int64, len(found))
    index.flags.writeable = False
    return Selection(groups, index, bare=none in found, flattened=given.flattened)


@lru_cache(1024)
def _singles(names: tuple[str, ...]) -> Groups:
    """Adapters one by one."""
    return Groups([{name: 1.0} for name in names], names)


def _key(choice: Choice, given: PerRow) -> tuple[tuple[str, float], ...]:
    if choice is None:
        return ()
    if isinstance(choice, str):
        return ((choice, 1.0),)
    if isinstance(choice, Mapping):
        return tuple(as_weights(choice).items())
    row = given.choices.index(choice)
    raise ConfigError(f"Each row's adapter is a name, a dict of names and weights, or None, found {choice!r} for row {row}.")


@lru_cache(4096)
def _named(name: str) -> Selection:
    return Selection(Groups([{name: 1.0}]))


NOTHING = Selection(Groups([{}]))


class using:
    """Within a `with` block, in this context alone, layers of that owner act by a selection."""

    def __init__(self, owner: Owner, chosen: Selection) -> None:
        self._owner, self._chosen = owner, chosen
        self._token: Token[Variant | None] | None = None

    def __enter__(self) -> None:
        before = variant.get()
        self._token = variant.set(Variant({**({} if before is None else before.chosen), self._owner: self._chosen}))

    def __exit__(self, *error: object) -> None:
        assert self._token is not None
        variant.reset(self._token)


def chosen(owner: Owner) -> Selection | None:
    """What the calling context has selected for that owner; None for nothing."""
    now = variant.get()
    return None if now is None else now.chosen.get(owner)
