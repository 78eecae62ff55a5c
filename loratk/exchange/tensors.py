"""Tensors of a safetensors file that belongs to another tool: all of them with the marks of what is bfloat16, or their names alone."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..errors import FormatError, faults
from ..io import SafetensorsStore, open_safetensors
from .own import FORMAT

MAX_NAME, MAX_DEPTH = 4096, 64


@dataclass(frozen=True)
class TensorFile:
    """What a file holds: arrays by name, which of them are stored as bfloat16 (they are float32 here), and its metadata."""

    arrays: dict[str, np.ndarray]
    bfloat16: frozenset[str]
    metadata: dict[str, str]


def read_tensors(path: Path, file: BinaryIO | None = None) -> TensorFile:
    """All tensors of a file, or of one that is open. Raises FormatError with every name that is none of a module and unknown dtype."""
    with open_safetensors(path, file) as reader:
        found = list(name_faults(reader.names()))
        for name in reader.names():
            try:
                reader.numpy_dtype(name)
            except FormatError as error:
                found.append(str(error))
        if found:
            raise FormatError(faults(f"'{path}' holds what loratk does not read:", found))
        arrays = {name: reader.array(name) for name in reader.names()}
        return TensorFile(arrays, frozenset(name for name in arrays if reader.dtype(name) == "BF16"), dict(reader.metadata))


def tensor_names(path: Path, file: BinaryIO | None = None) -> tuple[list[str], dict[str, str]] | None:
    """The names and metadata of a sound safetensors file that is not of loratk's own layout; None for all else. For `detect`."""
    if path.is_dir() or (file is None and not SafetensorsStore().sniff(path)):
        return None
    try:
        with open_safetensors(path, file) as reader:
            return None if reader.metadata.get("format") == FORMAT else (reader.names(), reader.metadata)
    except FormatError:
        return None


def name_faults(names: Collection[str]) -> Iterator[str]:
    """Names with control characters, an empty part, or more parts than any model is deep: no module is called so."""
    for name in names:
        if len(name) > MAX_NAME or name.count(".") >= MAX_DEPTH:
            yield f"tensor {name[:60]!r}... has {len(name)} characters and {name.count('.') + 1} parts in its name, more than a module has"
            continue
        if not name.isprintable() or "" in name.split("."):
            yield f"tensor {name!r} has {'an empty part in its name' if name.isprintable() else 'characters that no name has'}"


def marks(file: TensorFile, names: Mapping[str, str]) -> dict[str, Any]:
    """What a record must say of the dtypes of its parameters, `names` being parameter to tensor: {} or {"dtypes": {...}}."""
    marked = {parameter: "bfloat16" for parameter, name in names.items() if name in file.bfloat16}
    return {"dtypes": marked} if marked else {}


def marked(record: Mapping[str, Any], names: Mapping[str, str]) -> set[str]:
    """The tensors to write as bfloat16 by the marks of a record, `names` being parameter to tensor."""
    return {names[parameter] for parameter, dtype in record.get("dtypes", {}).items() if dtype == "bfloat16" and parameter in names}
