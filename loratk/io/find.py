"""Choosing the store for a file: by its content to read it, by its suffix to write it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from ..errors import ConfigError, FormatError, StoreError, UnknownNameError, choices
from .store import Store, open_binary

_KERAS = b"PK, a Keras model"
_KNOWN_HEADS = {
    _KERAS: "a Keras model, in which LoRA is merged when it is saved: no adapter can be read from it. Its weights alone, "
    "the member 'model.weights.h5' (unzip it), can be a base",
    b"GGUF": "a GGUF file",
    b"PK\x03\x04": "a zip archive that is no npz; if torch.save wrote it, --from loralib reads an adapter in it",
    b"\x80\x02": "a Python pickle, which loratk never loads",
    b"\x80\x03": "a Python pickle, which loratk never loads",
    b"\x80\x04": "a Python pickle, which loratk never loads",
    b"\x80\x05": "a Python pickle, which loratk never loads",
    b"\x93NUMPY": "a single .npy array; numpy.savez writes the .npz",
    b"\x1f\x8b": "a gzip file: unpack it",
    b"{": "JSON text",
}


def find_store(path: str | Path, stores: Mapping[str, Store], name: str | None = None, *, for_writing: bool = False) -> Store:
    """The store for `path` among `stores` (by name), or the one called `name`.

    Raises UnknownNameError (no store `name`), ConfigError (suffix of no store or of several), StoreError (no such file), FormatError
    (no store recognises the content).
    """
    path = Path(path)
    if name is not None:
        if name not in stores:
            raise UnknownNameError(f"no store named {name!r}; there are {choices(stores)}")
        return stores[name]
    return _by_suffix(path, stores) if for_writing else _by_content(path, stores)


def has_suffix(path: Path, stores: Mapping[str, Store]) -> bool:
    """Whether a path ends as the files of some store do."""
    return bool(_matches(path, stores))


def _matches(path: Path, stores: Mapping[str, Store]) -> list[str]:
    lengths = {
        key: max((len(suffix) for suffix in store.suffixes if path.name.lower().endswith(suffix.lower())), default=0)
        for key, store in stores.items()
    }
    longest = max(lengths.values(), default=0)
    return [key for key, length in lengths.items() if length and length == longest]


def _by_suffix(path: Path, stores: Mapping[str, Store]) -> Store:
    found = _matches(path, stores)
    if len(found) == 1:
        return stores[found[0]]
    if found:
        raise ConfigError(f"cannot choose how to write '{path}': the stores {choices(found)} all use this suffix; name one of them")
    known = ", ".join(f"{suffix} ({key})" for key, store in sorted(stores.items()) for suffix in store.suffixes) or "none"
    raise ConfigError(f"cannot choose how to write '{path}': no store has its suffix {path.suffix!r}. Known are {known}; or name the store")


def _by_content(path: Path, stores: Mapping[str, Store]) -> Store:
    if path.is_dir():
        raise StoreError(f"cannot read '{path}': it is a folder; give the path of a file")
    with open_binary(path) as file:
        head = file.read(16)
        if head.startswith(b"PK\3\4"):  # a zip archive lists its members at its end
            file.seek(max(file.seek(0, os.SEEK_END) - (1 << 16), 0))
            head = _KERAS if b"model.weights.h5" in file.read() else head
    found = [key for key, store in stores.items() if store.sniff(path)]
    if len(found) > 1:
        found = _matches(path, {key: stores[key] for key in found}) or found
    if len(found) == 1:
        return stores[found[0]]
    if found:
        raise ConfigError(f"cannot choose how to read '{path}': the stores {choices(found)} all recognise it; name one of them")
    raise FormatError(f"no store recognises '{path}' ({choices(stores)} were asked): it {_describe(head)}")


def _describe(head: bytes) -> str:
    if not head:
        return "is empty"
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 27:
        return "looks like a safetensors file"
    for magic, kind in _KNOWN_HEADS.items():
        if head.startswith(magic):
            return f"looks like {kind}"
    return f"begins with the bytes {head!r}, which are of no known format; it may be damaged"
