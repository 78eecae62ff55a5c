"""Which format a file or folder is of: by its content for reading, by its name for writing. No format goes before another."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ..errors import ConfigError, FormatError, StoreError, UnknownNameError, choices, faults
from ..io.store import Store
from .format import AdapterFormat
from .own import list_adapters

Formats = Mapping[str, AdapterFormat]


@dataclass(frozen=True)
class Detected:
    """A format, and the evidence for it in a file."""

    format: AdapterFormat
    evidence: str


def find_format(name: str, formats: Formats) -> AdapterFormat:
    """The format of that name. Raises UnknownNameError."""
    if name not in formats:
        raise UnknownNameError(f"no format named {name!r}; there are {choices(formats)}")
    return formats[name]


def detect(path: Path, formats: Formats, stores: Mapping[str, Store]) -> Detected:
    """The one format whose marks a file or folder bears.

    Raises StoreError (nothing there), ConfigError (several claim it, each with its evidence), FormatError (none does: what it seems to be).
    """
    if not path.exists():
        raise StoreError(f"cannot read '{path}': No such file or directory; check the path")
    claims = {name: evidence for name, format in formats.items() if (evidence := format.detect(path)) is not None}
    if len(claims) == 1:
        name, evidence = claims.popitem()
        return Detected(formats[name], evidence)
    if claims:
        said = [f"{name}: {evidence}" for name, evidence in claims.items()]
        raise ConfigError(faults(f"cannot choose how to read '{path}': several formats recognise it; name one of them (--from):", said))
    if path.is_dir():
        raise FormatError(f"no format recognises the folder '{path}' ({choices(formats)} were asked): {_inside(path, formats)}")
    if path.suffix.lower() == ".json" and (owner := _claimed(path.parent, formats)) is not None:
        raise FormatError(f"'{path}' alone is no adapter, but a part of the folder '{path.parent}' ({owner.title}); give the folder")
    list_adapters(path, stores=stores)  # raises: damaged, of no store, or what else its store finds in it
    raise FormatError(f"no format recognises '{path}', though its store reads it as adapters; name its format (--from)")


def _claimed(path: Path, formats: Formats) -> AdapterFormat | None:
    """The one format that recognises a path beside the one that was asked for; None if it cannot be looked at."""
    with suppress(StoreError):
        found = [format for format in formats.values() if format.detect(path) is not None]
        return found[0] if len(found) == 1 else None
    return None


def _inside(folder: Path, formats: Formats) -> str:
    names = sorted(entry.name for entry in folder.iterdir())
    if any(name.endswith((".bin", ".pt", ".pth", ".ckpt")) for name in names):
        return f"it holds {choices(names[:8])}; loratk reads a file of torch.save only if its format is named (--from loralib)"
    claims = [(name, owner) for name in names[:8] if (folder / name).is_file() and (owner := _claimed(folder / name, formats))]
    read = "".join(f"; {name!r} in it is of the format {owner.name!r}: give its path" for name, owner in claims)
    return f"it holds {choices(names[:8])}{' and more' if len(names) > 8 else ''}{read}"


def choose(path: Path, formats: Formats) -> AdapterFormat:
    """The format to write a path with: the one with the longest suffix that fits. Raises ConfigError if there is none, or several."""
    lengths = {
        name: max((len(end) for end in format.suffixes if path.name.lower().endswith(end.lower())), default=0)
        for name, format in formats.items()
    }
    longest = max(lengths.values(), default=0)
    folders = [name for name, format in formats.items() if format.folder]
    found = (
        [name for name, length in lengths.items() if length == longest] if longest else folders if not path.suffix or path.is_dir() else []
    )
    found = [name for name in found if formats[name].writable]
    if len(found) == 1:
        return formats[found[0]]
    if found:
        what = "use this suffix" if longest else "are folders"
        raise ConfigError(f"cannot choose how to write '{path}': the formats {choices(found)} all {what}; name one of them (--to)")
    known = ", ".join(f"{end} ({name})" for name, format in formats.items() for end in format.suffixes) or "none"
    raise ConfigError(
        f"cannot choose how to write '{path}': no format has its suffix {path.suffix!r}. Known are {known}; or name the format (--to)"
    )
