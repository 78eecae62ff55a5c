"""Values that cannot change, as a config holds them, and the same as plain lists and dicts."""

from collections.abc import Mapping
from typing import Any, NoReturn


class FrozenDict(dict[str, Any]):
    """A dict that cannot be changed, and so can be hashed. Two are equal if their order is too: the first pattern that matches counts."""

    def _refuse(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise TypeError("A LoraConfig cannot be changed; make another with replace().")

    __setitem__ = __delitem__ = __ior__ = _refuse
    clear = pop = popitem = setdefault = update = _refuse

    def __eq__(self, other: object) -> bool:
        return list(self.items()) == list(other.items()) if isinstance(other, FrozenDict) else dict(self) == other

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(tuple(self.items()))

    def __reduce__(self) -> tuple[Any, ...]:
        return FrozenDict, (dict(self),)


def fixed(value: Any) -> Any:
    """A value as one that cannot change, its lists and dicts too."""
    if isinstance(value, Mapping):
        return FrozenDict({key: fixed(item) for key, item in value.items()})
    return tuple(map(fixed, value)) if isinstance(value, (list, tuple)) else value


def plain(value: Any) -> Any:
    """The same as lists and dicts."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return list(map(plain, value)) if isinstance(value, (list, tuple)) else value
