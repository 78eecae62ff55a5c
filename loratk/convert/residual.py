"""What is needed to restore the bits of a checkpoint from what it was merged into: the small differences of bit patterns, compressed.

An npz file with one array of bytes for each array that does not come out as it was by giving it its old dtype. The numbers are taken by
their bits, as whole numbers: old minus new, as the small numbers that zigzag makes of both signs, the first bytes of all, then the second
ones, and so on. Its string `residual` tells which merge it belongs to, and the dtypes that were others before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ConfigError, FormatError
from ..io import LazyArrays, NpzStore, strict_json
from .files import Source, plain, raw
from .ledger import Merge, merge_record
from .rounding import KINDS
from .whole import rounded

RESIDUAL = "residual"
VERSION = 1


@dataclass(frozen=True)
class Residual:
    """The head of a file: the merge that it undoes, and for each array whose dtype was another before, which."""

    path: Path
    merge: Merge
    dtypes: Mapping[str, str]
    names: frozenset[str]


def given_dtype(stored: np.ndarray, dtype: str, to: str) -> np.ndarray:
    """A stored array as another dtype stores it, rounded to nearest; as it is where that is the same."""
    if dtype == to:
        return stored
    if dtype not in KINDS or to not in KINDS:
        raise FormatError(f"{dtype} cannot become {to}")
    return rounded(plain(stored, dtype).reshape(-1), to).reshape(stored.shape)


def difference(old: np.ndarray, new: np.ndarray) -> np.ndarray:
    """What makes old of new, two stored arrays of one dtype: (bytes,) uint8, mostly zero where the two are near."""
    width = old.dtype.itemsize
    one, two = (raw(array).view(f"<u{width}") for array in (old, new))
    with np.errstate(over="ignore"):
        away = one - two
        folded = (away << 1) ^ (away.view(f"<i{width}") >> (8 * width - 1)).view(f"<u{width}")
    return np.ascontiguousarray(folded.view(np.uint8).reshape(-1, width).T).reshape(-1)


def restored(new: np.ndarray, packed: np.ndarray) -> np.ndarray:
    """The inverse of `difference`: a stored array and its bytes -> the old one."""
    width = new.dtype.itemsize
    if packed.dtype != np.uint8 or packed.shape != (new.size * width,):
        raise FormatError(f"its residual is {packed.dtype} {packed.shape}, but {new.size * width} bytes are needed")
    folded = np.ascontiguousarray(packed.reshape(width, -1).T).reshape(-1).view(f"<u{width}")
    with np.errstate(over="ignore"):
        away = (folded >> 1) ^ (~(folded & 1) + 1)
        old = raw(new).view(f"<u{width}") + away
    return old.view(new.dtype.newbyteorder("<")).astype(new.dtype, copy=False).reshape(new.shape)


def write_residual(path: Path, old: Source, new: Source, names: Sequence[str], merge: Merge, level: int) -> int:
    """Write what makes the old arrays of the new ones, compressed by deflate at a level, and return the bytes of the file.

    `names` are the arrays that are not just copies.
    """

    def made(name: str) -> np.ndarray:
        dtype, merged = old.infos[name][0], new.stored(name)
        packed = difference(old.stored(name), given_dtype(merged, new.infos[name][0], dtype))
        old.release(name)
        new.release(name)
        return packed

    dtypes = {name: old.infos[name][0] for name in names if old.infos[name][0] != new.infos[name][0]}
    head = {"version": VERSION, "merge": asdict(merge), "dtypes": dtypes}
    arrays = LazyArrays({name: ((old.size(name),), np.dtype(np.uint8)) for name in names}, made)
    NpzStore(level).write(path, arrays, {RESIDUAL: strict_json.dumps(head)})
    return path.stat().st_size


def read_head(path: Path, reader: Any) -> Residual:
    """The head of an open residual. Raises FormatError for a file that is none."""
    text = reader.strings.get(RESIDUAL)
    if text is None:
        raise FormatError(f"'{path}' is no residual of a merge; it is what merge writes with --keep-residual")
    try:
        head = strict_json.loads(text)
        if head["version"] != VERSION:
            raise ConfigError(f"the residual '{path}' has version {head['version']!r}, loratk reads {VERSION}; use a newer loratk")
        dtypes = {str(name): str(dtype) for name, dtype in head["dtypes"].items()}
        if wrong := [dtype for dtype in dtypes.values() if dtype not in KINDS]:
            raise ValueError(f"{wrong[0]!r} is no dtype")
        return Residual(path, merge_record(head["merge"]), dtypes, frozenset(reader.names()))
    except ConfigError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FormatError(f"the residual '{path}' is damaged: {error}; get a new copy of it") from error
