"""loratk's own layout: adapters to and from any store, checked as a whole. It is public: docs/format.md."""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ConfigError, FormatError, UnknownNameError, choices, faults
from ..io import strict_json
from ..io.find import find_store
from ..io.store import Reader, Store
from ..io.text import escape, from_text, to_text, unescape
from .state import AdapterState, metadata_faults, module_faults, value_faults

FORMAT, FORMAT_VERSION = "loratk-adapter", "1"
ROOT = "adapters"


def write_adapters(
    path: str | Path,
    states: Iterable[AdapterState],
    *,
    stores: Mapping[str, Store],
    store: str | None = None,
) -> None:
    """Write adapters into one file, atomically. Raises ConfigError with every fault of every state."""
    chosen = find_store(path, stores, store, for_writing=True)
    states = list(states)
    found = [f"two adapters are named {name!r}" for name in _repeated(state.name for state in states)]
    arrays: dict[str, np.ndarray] = {}
    strings = {"format": FORMAT, "format_version": FORMAT_VERSION, "created_by": f"loratk {_version()}"}
    for state in states:
        packed = _Packed(state)
        found += [f"adapter {state.name!r}: {fault}" for fault in packed.faults]
        arrays |= packed.arrays
        strings |= packed.strings
    if found:
        raise ConfigError(faults(f"nothing was written to '{path}': the adapters have faults", found))
    chosen.write(Path(path), arrays, strings)


def read_adapters(
    path: str | Path,
    *,
    stores: Mapping[str, Store],
    names: Collection[str] | None = None,
    store: str | None = None,
    finite: bool = True,
) -> list[AdapterState]:
    """Read adapters, all or the named ones, in the file's order.

    The structure of the whole file is checked, and the values of what is read: that they are finite, unless told otherwise. Raises
    FormatError with every fault, UnknownNameError.
    """
    with _opened(path, stores, store) as reader:
        found: list[str] = []
        tree = _Tree(reader, found)
        if names is not None and (unknown := set(names) - set(tree.adapters)):
            raise UnknownNameError(f"'{path}' holds no adapter named {choices(unknown)}; it holds {choices(tree.adapters)}")
        states = {name: tree.state(name) for name in tree.adapters}  # without tensors
        wanted = {} if found else {name: state for name, state in states.items() if names is None or name in names}
        if names is None and not found:
            reader.verify()
        read = []
        for name, state in wanted.items():
            tensors: dict[str, np.ndarray] = {}
            for (module, parameter), full in tree.adapters[name].items():
                array = reader.array(full)
                tensors[_key(module, parameter)] = array.reshape(_acts_as(state.modules.get(module, {}), parameter, array.shape))
            found += [f"adapter {name!r}: {fault}" for fault in value_faults(tensors) if finite]
            read.append(replace(state, tensors=tensors))
        if found:
            raise FormatError(faults(f"'{path}' is not a sound adapter file (docs/format.md); correct it or get a new copy:", found))
        return read


def list_adapters(path: str | Path, *, stores: Mapping[str, Store], store: str | None = None) -> list[str]:
    """The names of the adapters in a file. No array is loaded."""
    with _opened(path, stores, store) as reader:
        return list(_Tree(reader, []).adapters)


class _Packed:
    """A state as the arrays and strings of a file, with its faults."""

    def __init__(self, state: AdapterState) -> None:
        self.arrays: dict[str, np.ndarray] = {}
        self.strings: dict[str, str] = {}
        self.faults: list[str] = []
        if not state.name:
            self.faults.append("an adapter needs a name")
        base = f"{ROOT}/{escape(state.name)}"
        if not isinstance(state.config, dict):
            self.faults.append(f"config must be a dict, found {state.config!r}")
        self._json(f"{base}/config", state.config, "config")
        self._json(f"{base}/metadata", state.metadata, "metadata")
        self.faults += metadata_faults(state.metadata)
        self.strings[f"{base}/fingerprint"] = state.fingerprint
        self.strings[f"{base}/version"] = state.version or _version()
        shapes: dict[str, dict[str, tuple[int, ...]]] = {module: {} for module in state.modules}
        for key, tensor in state.tensors.items():
            module, _, parameter = key.rpartition(".")
            self.arrays[f"{base}/{escape(module)}/{escape(parameter)}"] = tensor
            shapes.setdefault(module, {})[parameter] = np.shape(tensor)
        for module, record in state.modules.items():
            for key, value in record.items():
                self._json(f"{base}/{escape(module)}/{escape(key)}", value, f"module {module!r}, {key!r}", plain=True)
        for module, parameters in shapes.items():
            self.faults += module_faults(module, state.modules.get(module, {}), parameters)
        self.faults += value_faults(state.tensors)

    def _json(self, name: str, value: Any, what: str, *, plain: bool = False) -> None:
        try:
            self.strings[name] = to_text(value) if plain else strict_json.dumps(value)
        except ValueError as error:
            self.faults.append(f"{what} is {error}")


class _Tree:
    """What the names in a file say: `adapters[name][module path, parameter]` is the full name of an array. Faults go to `found`."""

    def __init__(self, reader: Reader, found: list[str]) -> None:
        self.adapters: dict[str, dict[tuple[str, str], str]] = {}
        self._reader, self._found = reader, found
        self._strings: dict[str, dict[str, str]] = {}
        self._records: dict[str, dict[str, dict[str, str]]] = {}
        misspelt: set[str] = set()
        for full in sorted([*reader.strings, *reader.names()]):
            parts = full.split("/")
            if parts[0] != ROOT or len(parts) < 3:
                continue
            misspelt |= {part for part in parts[1:] if escape(unescape(part)) != part}
            name, *rest = (unescape(part) for part in parts[1:])
            self.adapters.setdefault(name, {})
            if full in reader.strings and len(rest) == 1:
                self._strings.setdefault(name, {})[rest[0]] = reader.strings[full]
            elif full in reader.strings and len(rest) == 2:
                self._records.setdefault(name, {}).setdefault(rest[0], {})[rest[1]] = reader.strings[full]
        found += [f"in a name, {part!r} should be written {escape(unescape(part))!r}" for part in sorted(misspelt)]
        for full in reader.names():
            parts = [unescape(part) for part in full.split("/")]
            if parts[0] == ROOT and len(parts) == 4 and "." not in parts[3]:
                self.adapters[parts[1]][parts[2], parts[3]] = full
            elif parts[0] == ROOT:
                found.append(f"array {full!r} is not at {ROOT}/<adapter>/<module path>/<parameter>, the parameter without a dot")

    def state(self, name: str) -> AdapterState:
        """One adapter with its tensors left out; they are checked by shape."""
        strings = self._strings.get(name, {})
        modules = {module: {key: from_text(text) for key, text in texts.items()} for module, texts in self._records.get(name, {}).items()}
        for record in modules.values():
            if isinstance(rank := record.get("rank"), float) and rank.is_integer():
                record["rank"] = int(rank)  # some tools know no integers
        shapes: dict[str, dict[str, tuple[int, ...]]] = {module: {} for module in modules}
        for (module, parameter), full in self.adapters[name].items():
            shapes.setdefault(module, {})[parameter] = _acts_as(modules.get(module, {}), parameter, self._reader.info(full)[0])
        found = [fault for module, parameters in shapes.items() for fault in module_faults(module, modules.get(module, {}), parameters)]
        config, metadata = {}, {}
        try:
            config = _object(strings, "config")
            metadata = _object(strings, "metadata") if "metadata" in strings else {}
            found += metadata_faults(metadata)
        except ValueError as error:
            found.append(str(error))
        self._found += [f"adapter {name!r}: {fault}" for fault in found]
        return AdapterState(name, config, {}, modules, strings.get("fingerprint", ""), metadata, strings.get("version", ""))


@contextmanager
def _opened(path: str | Path, stores: Mapping[str, Store], store: str | None) -> Iterator[Reader]:
    """A file that says it holds adapters. Raises FormatError that tells what another file seems to be."""
    with find_store(path, stores, store).open(Path(path)) as reader:
        if reader.strings.get("format") != FORMAT:
            raise FormatError(f"'{path}' is no adapter file (it has no string 'format' = {FORMAT!r}): {_seems(reader)}")
        if (version := reader.strings.get("format_version")) != FORMAT_VERSION:
            raise FormatError(f"'{path}' is of format version {version!r}, and this loratk reads version {FORMAT_VERSION!r}; update loratk")
        yield reader


def _seems(reader: Reader) -> str:
    names = reader.names()
    if "format" in reader.strings:
        return f"it says that its format is {reader.strings['format']!r}"
    if "lora/vars/rank" in names:
        return "it seems to be a keras-hub '.lora.h5', which holds LoRA factors by layer number"
    if any("/vars/" in f"/{name}" for name in names):
        return (
            "it seems to be Keras model weights, in which LoRA is merged when they are saved: no adapter can be read from them. "
            "Save one with backbone.save_lora_weights('x.lora.h5'); this file can be the base (--base)"
        )
    if any("lora" in name.lower() for name in names):
        return (
            f"it holds LoRA tensors in another layout, such as {next(name for name in names if 'lora' in name.lower())!r}; convert it first"
        )
    if any(name.endswith(("weight", "bias")) for name in names):
        return "it seems to be plain model weights (a base model, or one with the adapter merged)"
    return f"it holds {len(names)} arrays in no layout known here ({choices(names[:3])})"


def _object(strings: Mapping[str, str], key: str) -> dict[str, Any]:
    if key not in strings:
        raise ValueError(f"{key} is missing")
    try:
        value = strict_json.loads(strings[key])
    except ValueError as error:
        raise ValueError(f"{key} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{key} must be a JSON object, found {strings[key]!r}")
    return value


def _acts_as(record: Mapping[str, Any], parameter: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that a stored parameter is read in: lora_A may lie with the axes of its kernel apart, (*axes, rank), and is (d, rank)."""
    kernel = record.get("kernel")
    if parameter != "lora_A" or "experts" in record or not isinstance(kernel, list) or len(shape) < 3:
        return shape
    einsum = record.get("layer_type") == "einsum"
    fits = list(shape[:-1] if einsum else shape[:-2]) == (kernel[:-1] if einsum else kernel)
    return (math.prod(shape[:-1]), shape[-1]) if fits else shape


def _key(module: str, parameter: str) -> str:
    return f"{module}.{parameter}" if module else parameter


def _repeated(names: Iterable[str]) -> list[str]:
    seen: set[str] = set()
    return sorted({name for name in names if name in seen or seen.add(name)})  # type: ignore[func-returns-value]


def _version() -> str:
    try:
        return importlib.metadata.version("loratk")
    except importlib.metadata.PackageNotFoundError:  # run from a source tree
        return "unknown"
