"""Layers that use the adapter of another."""

from typing import TYPE_CHECKING

from ..errors import ConfigError, faults
from .config import LoraConfig
from .parts import Part, parts_of
from .targets import matches

if TYPE_CHECKING:
    from .named import NamedAdapters


def tie(model: "NamedAdapters", adapter: str, config: LoraConfig) -> None:
    """Put one adapter in the place of several, where a config's `share` says so; none, and a ConfigError of every fault, if it cannot."""
    if not config.share:
        return
    pieces = {part.name: part for part in parts_of(model, adapter)}
    wanted = {part.name: path for part in pieces.values() if (path := _shared(config, part)) is not None}
    if found := [fault for name, path in wanted.items() if (fault := _fault(pieces[name], pieces.get(path), path, wanted))]:
        raise ConfigError(faults("These layers cannot share an adapter:", found))
    for name, path in wanted.items():
        part = pieces[name]
        setattr(part.layer.adapter(adapter), part.block or "matrix", pieces[path].adapter)


def _shared(config: LoraConfig, part: Part) -> str | None:
    """The path of the other whose adapter a piece shall use: that of the first pattern which matches."""
    names = (part.name, part.within)
    found = next((path for pattern, path in config.share.items() if any(matches(pattern, n, linear=part.linear) for n in names)), None)
    return None if found == part.name else found


def _fault(part: Part, other: Part | None, path: str, wanted: dict[str, str]) -> str:
    if other is None:
        return f"{part.name!r} shall use the adapter of {path!r}, and there is none of that name"
    if path in wanted:
        return f"{part.name!r} shall use the adapter of {path!r}, which has none of its own"
    mine, theirs = part.adapter, other.adapter
    if (mine.d, mine.k) != (theirs.d, theirs.k):
        return f"{part.name!r} {mine.d, mine.k} cannot use the adapter of {path!r} {theirs.d, theirs.k}"
    if mine.settings != theirs.settings:
        return f"{part.name!r} cannot use the adapter of {path!r}, which has other settings"
    if mine.first() is not None or not mine.method.proportional:
        return f"{part.name!r} cannot share an adapter that depends on its own weight (method {mine.method.name!r})"
    return ""
