"""Where and how a checkpoint is written: as one file of a store, or as a folder of safetensors shards with an index."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ConfigError, StoreError, choices
from ..exchange import Checkpoint
from ..exchange.base import INDEX
from ..io import SafetensorsStore, Store, StoreBase, find_store
from ..io.find import has_suffix
from .adapters import split_options
from .ledger import LEDGER

BESIDE = (".json", ".jinja", ".md", ".model", ".py", ".tiktoken", ".txt")
"""Ends of the names of files that go along with weights: configuration, tokenizer, licence."""
ALONE = "model.safetensors"


@dataclass(frozen=True)
class Shard:
    """One file of the result: its name, the arrays in it, and its strings but for the ledger."""

    name: str
    arrays: tuple[str, ...]
    strings: Mapping[str, str]


@dataclass(frozen=True)
class Target:
    """A result: its path, the store it is written with, and its files; one without a name if it is a file itself.

    index: name and content of the index of a folder of several shards, but for its size. copied, left: files beside the weights that come
    along, and those that do not.
    """

    path: Path
    store: Store
    shards: tuple[Shard, ...]
    index: tuple[str, dict[str, Any]] | None = None
    copied: tuple[Path, ...] = ()
    left: tuple[str, ...] = ()

    @property
    def folder(self) -> bool:
        """Whether it is a folder."""
        return self.shards[0].name != ""

    @property
    def safetensors(self) -> bool:
        """Whether it is written in place, array by array."""
        return isinstance(self.store, SafetensorsStore)


def choose_target(
    out: Path, base: Checkpoint, stores: Mapping[str, Store], to: str | None = None, options: Mapping[str, Any] | None = None
) -> Target:
    """How to write `out`: by the store `to`, or that of its suffix. Without one it is a folder of the base's shards, if that is a folder.

    Raises ConfigError where that cannot be told, or for options that the store does not have.
    """
    files = base.files()
    source = Path(base.path)
    folder = source if source.is_dir() else source.parent if source.name.endswith(INDEX) else None
    if folder is None or to not in (None, "safetensors") or (has_suffix(out, stores) and not out.is_dir()):
        store = find_store(out, stores, to, for_writing=True)
        store = store.configured(dict(options)) if options and isinstance(store, StoreBase) else store
        strings = {key: text for key, text in base.strings.items() if key != LEDGER}
        return Target(out, store, (Shard("", tuple(name for names, _ in files.values() for name in names), strings),))
    split_options(options or {}, {"to": {}})
    shards = tuple(
        Shard(path.name if path.suffix == ".safetensors" else ALONE, tuple(names), {k: v for k, v in strings.items() if k != LEDGER})
        for path, (names, strings) in files.items()
    )  # fmt: skip
    indexes = [source] if source != folder else sorted(folder.glob(f"*{INDEX}"))
    index = (indexes[0].name, json.loads(indexes[0].read_text(encoding="utf-8"))) if indexes else None
    beside = [entry for entry in sorted(folder.iterdir()) if entry not in files and entry not in indexes and not entry.name.startswith(".")]
    copied = tuple(entry for entry in beside if entry.is_file() and entry.name.lower().endswith(BESIDE) and not entry.name.endswith(INDEX))
    return Target(out, SafetensorsStore(), shards, index, copied, tuple(entry.name for entry in beside if entry not in copied))


def check_free(target: Target, base: Checkpoint, force: bool) -> None:
    """Raises StoreError where something is in the way: anything without `force`, with it what is not loratk's own to replace."""
    out = target.path
    if not out.exists():
        return
    if not force:
        raise StoreError(f"'{out}' is there already and was left as it is; pass force=True (--force) to replace it.")
    if out.is_dir() != target.folder:
        kinds = ("a folder", "a file") if out.is_dir() else ("a file", "a folder")
        raise StoreError(f"cannot write '{out}': it is {kinds[0]}, and {kinds[1]} would take its place; give another path")
    if not out.is_dir():
        return
    if any(path.parent.resolve() == out.resolve() for path in base.files()):
        raise StoreError(f"cannot write '{out}': it is the folder that is read; give another path")
    names = {shard.name for shard in target.shards} | {path.name for path in target.copied} | {target.index[0] if target.index else ""}
    if others := [entry.name for entry in sorted(out.iterdir()) if entry.name not in names]:
        raise StoreError(
            f"cannot replace the folder '{out}': it holds {choices(others[:5])}, which the result does not; move it away yourself, "
            "or give another path"
        )


def check_dtype(target: Target, dtype: str | None) -> None:
    """Raises ConfigError where a store lacks the dtype that is asked for."""
    if dtype == "bfloat16" and not target.safetensors:
        raise ConfigError(
            f"Of the stores only safetensors has bfloat16, and '{target.path}' is {target.store.name!r}; choose another dtype."
        )
