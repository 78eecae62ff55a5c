"""A folder of adapters on the disk: where each lies, and its two files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from loratk.errors import FormatError, StoreError
from loratk.io import open_safetensors, opened_files
from loratk.io.safetensors import SafetensorsReader

from .config import NAME as CONFIG

TENSORS = "adapter_model.safetensors"
PICKLE = "adapter_model.bin"
FILES = (TENSORS, CONFIG)
DEFAULT = "default"


def adapters(root: Path) -> dict[str, Path]:
    """The folder of each adapter by its name: the root is `default`, each folder in it with a config is named after itself."""
    found = {DEFAULT: root} if _is_there(root) else {}
    try:
        inner = sorted(entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    except OSError as error:
        raise StoreError(f"cannot read '{root}': {error.strerror or error}; check the path and its permissions") from error
    for entry in inner:
        if _is_there(entry):
            found.setdefault(entry.name, entry)
    return found


def _is_there(folder: Path) -> bool:
    """Whether a folder has a config."""
    if (folder / CONFIG).is_dir():
        return False
    with opened_files(folder, [CONFIG]) as files:
        return files[CONFIG] is not None


@contextmanager
def opened(folder: Path) -> Iterator[tuple[BinaryIO, SafetensorsReader]]:
    """The config and the tensors of one adapter, of one and the same write. Raises FormatError, StoreError."""
    with opened_files(folder, FILES) as files:
        config, tensors = files[CONFIG], files[TENSORS]
        if config is None:
            raise FormatError(f"'{folder}' has no {CONFIG}; get the whole folder")
        if tensors is None:
            raise FormatError(_without_tensors(folder))
        with open_safetensors(folder / TENSORS, tensors) as reader:
            yield config, reader


def _without_tensors(folder: Path) -> str:
    if not (folder / PICKLE).exists():
        return f"'{folder}' has {CONFIG}, but no {TENSORS}; get the whole folder"
    return (
        f"'{folder}' has its tensors in {PICKLE}, a Python pickle, which can run code when it is loaded; loratk takes it only if "
        f"asked, with a reader that allows nothing but tensors: --from loralib and the path of {PICKLE}. "
        "Or save it with safe_serialization=True"
    )
