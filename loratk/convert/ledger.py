"""The ledger of a merged checkpoint: what was merged into what, so that nothing is merged twice and what was merged can be taken out again.

It is one string of JSON in the file, `loratk_ledger`: the metadata of safetensors (of every shard), an attribute in HDF5, a string in npz.

    {"version": 1, "base": "<checksum>", "fingerprint": "", "merges": [{"adapters": [{"name", "sha256", "weight", "file"}, ...],
     "before": "<checksum>", "after": "<checksum>", "dtype": null, "rounding": "nearest", "seed": null, "loratk": "0.1.0"}, ...]}

`before` and `after` are the checksums of all arrays (checksums.py). A fingerprint is kept where an adapter asked for the base's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import ConfigError, FormatError, StateError, choices, faults
from ..io import strict_json
from .rounding import NEAREST, STOCHASTIC

LEDGER = "loratk_ledger"
VERSION = 1
BLANK = "0" * 64
"""Stands for a checksum that is not known yet."""


@dataclass(frozen=True)
class MergedAdapter:
    """An adapter that was merged: SHA-256 of what it adds, what that was multiplied by, and the name of the file it came from."""

    name: str
    sha256: str
    weight: float
    file: str = ""


@dataclass(frozen=True)
class Merge:
    """One merge: adapters in their order, checksums of all arrays before and after it, and how numbers were rounded."""

    adapters: tuple[MergedAdapter, ...]
    before: str
    after: str
    dtype: str | None
    rounding: str
    seed: int | None
    loratk: str


@dataclass(frozen=True)
class Ledger:
    """The merges of a checkpoint, the first one first, the checksum of the base before it, and the base's fingerprint where it is known."""

    base: str
    fingerprint: str
    merges: tuple[Merge, ...]

    @property
    def adapters(self) -> list[MergedAdapter]:
        """The adapters of all merges."""
        return [adapter for merge in self.merges for adapter in merge.adapters]

    def until(self, count: int) -> Ledger | None:
        """The ledger when so many merges were done; None for none."""
        return replace(self, merges=self.merges[:count]) if count else None

    def text(self) -> str:
        """As it is kept."""
        return strict_json.dumps({"version": VERSION, **asdict(self)})


def appended(ledger: Ledger | None, merge: Merge, fingerprint: str) -> Ledger:
    """A ledger, or a new one, with one merge more."""
    if ledger is None:
        return Ledger(merge.before, fingerprint, (merge,))
    return replace(ledger, merges=(*ledger.merges, merge))


def read_ledger(files: Mapping[Path, Mapping[str, str]]) -> Ledger | None:
    """The ledger in the strings of a checkpoint's files; None if no file has one.

    Raises FormatError where files of one checkpoint do not have the same, as when some of them were replaced, and for one that is damaged.
    """
    held: dict[str | None, list[str]] = {}
    for path, strings in files.items():
        held.setdefault(strings.get(LEDGER), []).append(path.name)
    if len(held) > 1:
        lines = [f"{choices(names)}: {'no ledger' if text is None else _short(text)}" for text, names in held.items()]
        raise FormatError(faults("the files are not of one checkpoint, as their ledgers of merges differ; get a whole copy of it:", lines))
    text = next(iter(held), None)
    return None if text is None else parse(text)


def parse(text: str) -> Ledger:
    """A ledger of its text. Raises FormatError."""
    try:
        record = strict_json.loads(text)
        if (version := record["version"]) != VERSION:
            raise FormatError(f"the ledger of merges has version {version!r}, loratk reads {VERSION}; use a newer loratk")
        ledger = Ledger(_checksum(record["base"]), _text(record["fingerprint"]), tuple(map(merge_record, record["merges"])))
    except FormatError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FormatError(f"the ledger of merges ({LEDGER}) is damaged: {error}; get a new copy of the checkpoint") from error
    chain = [ledger.base, *(merge.after for merge in ledger.merges)]
    if not ledger.merges or any(a != merge.before for a, merge in zip(chain, ledger.merges, strict=False)):
        raise FormatError(f"the ledger of merges ({LEDGER}) contradicts itself: each merge must begin where the one before it ended")
    return ledger


def check_new(ledger: Ledger | None, adapters: Sequence[MergedAdapter], again: Iterable[str]) -> None:
    """Raises StateError that lists the adapters which are merged already, or given twice, unless they are named in `again`.

    Raises ConfigError for a name in `again` of which that is not true.
    """
    again, needed, found = set(again), set(), []
    known = {adapter.sha256: f"was merged before (weight {adapter.weight:g})" for adapter in (ledger.adapters if ledger else ())}
    for adapter in adapters:
        if adapter.sha256 in known:
            needed.add(adapter.name)
            if adapter.name not in again:
                found.append(f"adapter {adapter.name!r} of '{adapter.file}' {known[adapter.sha256]}, SHA-256 {adapter.sha256[:12]}...")
        known.setdefault(adapter.sha256, "is given twice")
    if found:
        raise StateError(faults("Merging twice would add the same update again; pass again (--again NAME) to do so:", found))
    if idle := again - needed:
        raise ConfigError(f"{choices(idle)} is to be merged again, but no adapter of that name was merged before; leave it out (--again).")


def merge_record(record: Any) -> Merge:
    """A merge of its record in JSON. Raises ValueError, KeyError or TypeError."""
    adapters = tuple(
        MergedAdapter(_text(a["name"]), _checksum(a["sha256"]), _number(a["weight"]), _text(a["file"])) for a in record["adapters"]
    )  # fmt: skip
    if record["rounding"] not in (NEAREST, STOCHASTIC) or not adapters:
        raise ValueError(f"a merge has the rounding {record['rounding']!r} and {len(adapters)} adapters")
    after = _checksum(record["after"])
    dtype = None if record["dtype"] is None else _text(record["dtype"])
    return Merge(adapters, _checksum(record["before"]), after, dtype, record["rounding"], record["seed"], _text(record["loratk"]))


def _checksum(value: Any) -> str:
    if not isinstance(value, str) or len(value) != 64 or set(value) - set("0123456789abcdef"):
        raise ValueError(f"{value!r} is no checksum")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is no text")
    return value


def _number(value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ValueError(f"{value!r} is no number")
    return float(value)


def _short(text: str) -> str:
    try:
        merges = parse(text).merges
    except FormatError:
        return "a damaged ledger"
    return f"a ledger of {len(merges)} merge{'s' * (len(merges) != 1)}, the last of {choices(a.name for a in merges[-1].adapters)}"
