"""Which names, arrays and strings every store carries: one set of rules, so that a file moves between any two stores unchanged.

A name is a path with "/" between its parts. Names that some store could not keep apart (empty parts, ".", "..", an
array that would also have to be a folder) are refused before a byte is written, never escaped or altered.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from ..errors import ConfigError, DtypeError, faults
from .lazy import LazyArrays, info

DTYPES = tuple(
    np.dtype(kind)
    for kind in (
        np.bool_,
        np.int8,
        np.int16,
        np.int32,
        np.int64,
        np.uint8,
        np.uint16,
        np.uint32,
        np.uint64,
        np.float16,
        np.float32,
        np.float64,
    )
)
RESERVED = "__loratk"
MAX_NAME_BYTES = 4096


def text_fault(text: object) -> str | None:
    """What keeps `text` from being stored as a string, or None: it must be a str of valid Unicode without NUL."""
    if not isinstance(text, str):
        return f"is a {type(text).__name__}, not a str"
    if "\0" in text:
        return "holds the character NUL"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "holds a lone surrogate, which is no text"
    return None


def name_fault(name: object) -> str | None:
    """What is wrong with a name, or None."""
    fault = text_fault(name)
    if fault is not None:
        return fault
    assert isinstance(name, str)
    if len(name.encode()) > MAX_NAME_BYTES:
        return f"is longer than {MAX_NAME_BYTES} bytes"
    parts = name.split("/")
    for part in parts:
        if part in ("", ".", ".."):
            return "has an empty part (a '/' at an end, or two in a row)" if name and not part else f"has the part {part!r}"
    if parts[0].startswith(RESERVED):
        return f"begins with {RESERVED!r}, which is kept for the stores"
    return None


def name_faults(arrays: Iterable[str], strings: Iterable[str]) -> Iterator[str]:
    """Every fault of a set of names, one line each: of the names alone, and of arrays that would also be folders."""
    arrays, strings = list(arrays), list(strings)
    leaves = set(arrays)
    for kind, names in (("array", arrays), ("string", strings)):
        for name in names:
            fault = name_fault(name)
            if fault is not None:
                yield f"the name of {kind} {_shown(name)} {fault}"
                continue
            parents = (name[:at] for at, character in enumerate(name) if character == "/")
            for parent in parents:
                if parent in leaves:
                    yield f"{parent!r} is an array, so {kind} {name!r} cannot lie below it"


def dtype_fault(dtype: np.dtype) -> str | None:
    """What is wrong with a dtype, or None; byte order is no fault."""
    if dtype.newbyteorder("=") in DTYPES:
        return None
    kind = (
        "structured" if dtype.fields else {"O": "object", "U": "string", "S": "string", "T": "string", "c": "complex"}.get(dtype.kind, "")
    )
    return f"has the {kind + ' ' if kind else ''}dtype {dtype}"


def array_faults(arrays: Mapping[str, np.ndarray]) -> Iterator[str]:
    """Values that are no arrays, and dtypes that cannot be stored; of LazyArrays no array is made."""
    for name in arrays:
        array = None if isinstance(arrays, LazyArrays) else arrays[name]
        if array is not None and not isinstance(array, np.ndarray):
            yield f"{name!r} is a {type(array).__name__}, not a NumPy array"
        elif (fault := dtype_fault(info(arrays, name)[1])) is not None:
            yield f"{name!r} {fault}"


def check_contents(arrays: Mapping[str, np.ndarray], strings: Mapping[str, str]) -> None:
    """Refuse what a store cannot keep exactly. Raises ConfigError (names, strings) or DtypeError (arrays), with every fault."""
    found = list(name_faults(arrays, strings))
    found += [f"string {name!r} {fault}" for name, value in strings.items() if (fault := text_fault(value)) is not None]
    if found:
        raise ConfigError(faults("these names or strings cannot be stored; rename or drop them:", found))
    found += array_faults(arrays)
    if found:
        wanted = ", ".join(dtype.name for dtype in DTYPES)
        raise DtypeError(faults(f"these arrays cannot be stored; convert them to one of {wanted}:", found))


def _shown(name: object) -> str:
    text = repr(name)
    return text if len(text) <= 80 else text[:77] + "..."
