"""Adapter files into other stores and dtypes, or merged into a base's weights. Needs no module, only files."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from .errors import ConfigError, FormatError, StoreError, UnknownNameError, faults
from .exchange import FORMAT, AdapterState, read_adapters, write_adapters
from .io import find_store
from .kernels import get_backend
from .lora.fingerprint import fingerprint
from .plugins import Registry, default_registry

DTYPES = ("float16", "float32", "float64")
Arrays = dict[str, np.ndarray]


def export_adapters(
    source: str | Path,
    destination: str | Path,
    *,
    adapters: Sequence[str] | None = None,
    dtype: str | None = None,
    store: str | None = None,
    force: bool = False,
    registry: Registry | None = None,
) -> list[str]:
    """Copy adapters (all if None) from one file to another, and return their names.

    The format is that of the destination's suffix, or of the named store. Raises StoreError if the destination is there
    already, unless `force`; the destination is written at once or not at all.
    """
    stores = (registry or default_registry()).stores
    _check_request(destination, dtype, force)
    find_store(destination, stores, store, for_writing=True)
    found: list[str] = []
    states = [replace(state, tensors=_cast(state.tensors, dtype, found)) for state in read_adapters(source, stores=stores, names=adapters)]
    _refuse(f"Nothing was written to '{destination}':", found)
    write_adapters(destination, states, stores=stores, store=store)
    return [state.name for state in states]


def export_merged(
    source: str | Path,
    base: str | Path,
    destination: str | Path,
    *,
    adapters: Sequence[str] | None = None,
    dtype: str | None = None,
    store: str | None = None,
    force: bool = False,
    check_base: bool = True,
    registry: Registry | None = None,
) -> list[str]:
    """Write a base's arrays with adapters (all if None) folded in, and return the names of the adapters.

    `base` is a file of arrays by dotted parameter names, as `Module.state_dict` gives them; those that no adapter changes,
    and its strings, are copied. Raises FormatError, listing every fault, for an adapter that was made for another base
    (`check_base=False` takes it if its shapes fit) or does not fit; otherwise as `export_adapters`.
    """
    registry = registry or default_registry()
    _check_request(destination, dtype, force)
    target = find_store(destination, registry.stores, store, for_writing=True)
    contents = find_store(base, registry.stores).read(Path(base))
    if contents.strings.get("format") == FORMAT:
        raise FormatError(f"'{base}' is an adapter file, not the weights of a base model; the base is what the adapter was trained on.")
    states = read_adapters(source, stores=registry.stores, names=adapters)
    found = list(_foreign(states, contents.arrays)) if check_base else []
    merged = {} if found else merge(contents.arrays, states, registry, found, dtype)
    merged = _cast(merged, dtype, found)
    _refuse(f"Nothing was written to '{destination}': the adapters do not fit the base '{base}':", found)
    target.write(Path(destination), merged, contents.strings)
    return [state.name for state in states]


def merge(
    base: Mapping[str, np.ndarray], states: Sequence[AdapterState], registry: Registry, found: list[str], dtype: str | None
) -> Arrays:
    """A base's arrays plus the updates of adapters, in the base's dtypes if None is given; what does not fit is added to `found`.

    Updates are computed and summed in float64 and rounded once. Arrays without an update are the base's own.
    """
    sums: Arrays = {}
    for state in states:
        for module, record in state.modules.items():
            where = f"adapter {state.name!r}, module {module!r}"
            tensors = {name.rpartition(".")[2]: tensor for name, tensor in state.tensors.items() if name.rpartition(".")[0] == module}
            try:
                for name, columns, update in _updates(base, module, record, tensors, registry):
                    total = sums.setdefault(name, np.array(base[name], np.float64, order="C"))
                    total.reshape(-1, total.shape[-1])[:, columns] += update
            except (FormatError, UnknownNameError) as error:
                found.append(f"{where}: {error}")
    with np.errstate(over="ignore"):
        merged = {name: total.astype(dtype or base[name].dtype) for name, total in sums.items()}
    found += [f"{name!r} is not finite after merging; check the adapter" for name, array in merged.items() if not np.isfinite(array).all()]
    return dict(base) | merged


def _updates(
    base: Mapping[str, np.ndarray], module: str, record: Mapping[str, Any], tensors: Arrays, registry: Registry
) -> Iterator[tuple[str, slice, np.ndarray]]:
    """What one module's adapter adds: the name of an array of the base, the columns, and the update (d, k) or (k,) in float64."""
    tensors = {name: tensor.astype(np.float64) for name, tensor in tensors.items()}
    change = tensors.pop("bias", None)
    if change is not None:
        name, array = _array(base, module, "bias")
        if array.shape != change.shape:
            raise FormatError(f"its bias has shape {change.shape}, {name!r} {array.shape}")
        yield name, slice(None), change
    if not tensors:
        return
    method = registry.method(record["method"])
    owner, columns = module, slice(None)
    if "columns" in record:  # a block of a fused projection, named after it
        owner, columns = module.rpartition(".")[0], _slice(record["columns"])
    name, array = _array(base, owner, "weight")
    weight = np.ascontiguousarray(array.reshape(-1, array.shape[-1])[:, columns], np.float64)
    d, k = weight.shape
    want = method.shapes(d, k, record.get("rank", 0))
    got = {key: tensor.shape for key, tensor in tensors.items()}
    if want != got:
        raise FormatError(f"for a ({d}, {k}) weight its tensors must be {want}, found {got}")
    if record.get("shape", [d, k]) != [d, k]:
        raise FormatError(f"it was made for a weight of shape {record['shape']}, {name!r} acts as {[d, k]}")
    yield name, columns, method.delta(get_backend("reference"), weight, tensors, float(record.get("scaling", 1.0)))


def _array(base: Mapping[str, np.ndarray], module: str, kind: str) -> tuple[str, np.ndarray]:
    """Name and value of a module's weight or bias. A base that is one layer has no dotted names, and its module is `root`."""
    name = f"{module}.{kind}"
    if name not in base and module == "root":
        name = kind
    if name not in base:
        raise FormatError(f"the base has no array {name!r}")
    if base[name].dtype.kind != "f" or not base[name].ndim:
        raise FormatError(f"{name!r} must be an array of floating-point numbers, found {base[name].dtype} {base[name].shape}")
    return name, base[name]


def _slice(columns: Any) -> slice:
    if not isinstance(columns, list) or len(columns) != 2 or not all(isinstance(place, int) for place in columns):
        raise FormatError(f"its record must give columns as [start, stop], found {columns!r}")
    return slice(*columns)


def _foreign(states: Sequence[AdapterState], base: Mapping[str, np.ndarray]) -> Iterator[str]:
    mine = fingerprint(base)
    for state in states:
        if state.fingerprint and state.fingerprint != mine:
            yield (
                f"adapter {state.name!r} was made for another base (fingerprint {state.fingerprint[:12]}..., this one has {mine[:12]}...); "
                "give the weights it was trained on, or pass check_base=False (--any-base) if you know that they fit"
            )


def _cast(arrays: Arrays, dtype: str | None, found: list[str]) -> Arrays:
    """The floating-point arrays in another dtype (None: as they are). What does not fit in it is added to `found`."""
    if dtype is None:
        return arrays
    with np.errstate(over="ignore"):
        cast = {name: array.astype(dtype) if array.dtype.kind == "f" else array for name, array in arrays.items()}
    for name, array in cast.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all() and np.isfinite(arrays[name]).all():
            found.append(f"{name!r} holds {float(np.abs(arrays[name]).max()):.3g}, which is too large for {dtype}")
    return cast


def _check_request(destination: str | Path, dtype: str | None, force: bool) -> None:
    if dtype not in (None, *DTYPES):
        raise ConfigError(f"dtype must be one of {', '.join(DTYPES)}, found {dtype!r}.")
    if Path(destination).exists() and not force:
        raise StoreError(f"'{destination}' is there already and was left as it is; pass force=True (--force) to replace it.")


def _refuse(title: str, found: list[str]) -> None:
    if found:
        raise FormatError(faults(title, found))
