"""Adapters of any format folded into a base's weights, from files alone."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ConfigError, FormatError, UnknownNameError, faults
from ..exchange import AdapterState, Checkpoint, detect_format, load_adapter
from ..exchange.bake import dora_update
from ..exchange.base import input_first
from ..exchange.cautions import scale_lines
from ..exchange.factors import dense_update
from ..exchange.transform import cast_array
from ..exchange.transform import select as selected
from ..io import find_store
from ..kernels import get_backend
from ..lora.fingerprint import fingerprint
from ..plugins import Registry, default_registry
from .adapters import Exported, check_request, split_options

Arrays = dict[str, np.ndarray]


def export_merged(
    source: str | Path,
    base: str | Path,
    destination: str | Path,
    *,
    format: str | None = None,
    to: str | None = None,
    adapters: Sequence[str] | None = None,
    options: Mapping[str, Any] | None = None,
    allow_missing: Collection[str] = (),
    rename: Mapping[str, str] | None = None,
    select: Sequence[str] = (),
    dtype: str | None = None,
    force: bool = False,
    check_base: bool = True,
    order: str | None = None,
    registry: Registry | None = None,
) -> Exported:
    """Write a base's arrays with adapters (all if None) folded in.

    `base` is a file of arrays by dotted parameter names, as `Module.state_dict` gives them, or torch, in safetensors; `order` is that of
    its axes, as in `Checkpoint`. Arrays that no adapter changes, and its strings, are copied. `to` names the store of the destination.
    Raises FormatError, listing every fault, for an adapter that was made for another base (`check_base=False` takes it if its shapes fit)
    or does not fit; otherwise as `export_adapters`.
    """
    registry = registry or default_registry()
    check_request(destination, dtype, force)
    target = find_store(destination, registry.stores, to, for_writing=True)
    if dtype == "bfloat16":
        raise ConfigError("Merged weights are written as float16, float32 or float64.")
    with Checkpoint(base, registry.stores, order) as opened:
        found_as = detect_format(source, format=format, registry=registry)
        (reads,) = split_options(options or {}, {"from": found_as.format.options})
        reading = load_adapter(
            source, format=found_as, adapters=adapters, base=opened, options=reads, allow_missing=allow_missing, rename=rename,
            registry=registry,
        )  # fmt: skip
        order, note = opened.order, opened.note
    states = selected(reading.states, select) if select else reading.states
    contents = find_store(base, registry.stores).read(Path(base))
    found = list(_foreign(states, contents.arrays)) if check_base else []
    merged = {} if found else merge(contents.arrays, states, registry, found, dtype, order)
    if dtype is not None:
        merged = {name: cast_array(name, array, dtype, found) for name, array in merged.items()}
    if found:
        raise FormatError(faults(f"Nothing was written to '{destination}': the adapters do not fit the base '{base}':", found))
    target.write(Path(destination), merged, contents.strings)
    notes = [*reading.notes, *([] if note in reading.notes else [note])]
    notes += [f"adapter {state.name!r}: {line}" for state in states for line in scale_lines(state)]
    return Exported([state.name for state in states], notes)


def merge(
    base: Mapping[str, np.ndarray],
    states: Sequence[AdapterState],
    registry: Registry,
    found: list[str],
    dtype: str | None,
    order: str = "input-first",
) -> Arrays:
    """A base's arrays plus the updates of adapters, in the base's dtypes if None is given; what does not fit is added to `found`.

    Updates are computed and summed in float64 and rounded once. Arrays without an update are the base's own. `order` is that of the base's
    axes, as in `Checkpoint`.
    """
    merging = _Merging(base, registry, order)
    for state in states:
        for module, held in state.parameters().items():
            try:
                merging.add(module, state.modules[module], held)
            except (FormatError, UnknownNameError) as error:
                found.append(f"adapter {state.name!r}, module {module!r}: {error}")
    with np.errstate(over="ignore"):
        merged = {name: total.astype(dtype or base[name].dtype) for name, total in merging.sums.items()}
    found += [f"{name!r} is not finite after merging; check the adapter" for name, array in merged.items() if not np.isfinite(array).all()]
    return dict(base) | merged


class _Merging:
    """Sums of a base's arrays and updates, by name, in float64."""

    def __init__(self, base: Mapping[str, np.ndarray], registry: Registry, order: str) -> None:
        self.base, self.registry, self.order = base, registry, order
        self.sums: Arrays = {}
        self._replaced: set[str] = set()

    def add(self, module: str, record: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> None:
        """Add what one module's adapter changes. Raises FormatError where it does not fit, and UnknownNameError for a method."""
        held = {name: tensor.astype(np.float64) for name, tensor in tensors.items()}
        if record["method"] in ("full", "diff"):
            for key, tensor in held.items():
                self._whole(module, record, key, tensor)
            return
        change, scaled = held.pop("bias", None), held.pop("lora_bias", None)
        if scaled is not None:
            change = (0.0 if change is None else change) + scaled * record["scaling"]
        if change is not None:
            name = self._name(module, "bias")
            if self.base[name].shape != change.shape:
                raise FormatError(f"its bias has shape {change.shape}, {name!r} {self.base[name].shape}")
            self._total(name)[...] += change
        if held:
            self._update(module, record, held)

    def _update(self, module: str, record: Mapping[str, Any], held: Arrays) -> None:
        owner, columns = module, slice(None)
        if "columns" in record:  # a block of a fused projection, named after it
            owner, columns = module.rpartition(".")[0], _slice(record["columns"])
        name = self._name(owner, "weight")
        block = self._oriented(self.base[name], owner, record)[..., columns]
        weight = np.ascontiguousarray(block, np.float64).reshape(-1, block.shape[-1])
        if record.get("shape", list(weight.shape)) != list(weight.shape):
            raise FormatError(f"it was made for a weight of shape {record['shape']}, {name!r} acts as {list(weight.shape)}")
        update = _delta(weight, record, held, self.registry)
        self._oriented(self._total(name), owner, record)[..., columns] += update.reshape(block.shape)

    def _whole(self, module: str, record: Mapping[str, Any], key: str, tensor: np.ndarray) -> None:
        """A parameter that replaces the base's, or is added to it; it comes in torch's order."""
        name = self._name(module, key)
        total = self._total(name)
        view = total if self.order == "output-first" else input_first(tensor, module)
        tensor = tensor if self.order == "output-first" else view
        if tensor.shape != total.shape:
            raise FormatError(f"its {key} has shape {tensor.shape}, {name!r} {total.shape}")
        if record["method"] == "full" and name in self._replaced:
            raise FormatError(f"another adapter replaces {name!r} too")
        total[...] = tensor if record["method"] == "full" else total + tensor
        self._replaced |= {name} if record["method"] == "full" else set()

    def _oriented(self, array: np.ndarray, module: str, record: Mapping[str, Any]) -> np.ndarray:
        table = record.get("layer_type") == "embedding"
        return array if self.order == "input-first" or table else input_first(array, module)

    def _total(self, name: str) -> np.ndarray:
        return self.sums.setdefault(name, np.array(self.base[name], np.float64, order="C"))

    def _name(self, module: str, kind: str) -> str:
        """The name of a module's array. A base that is one layer has no dotted names, and its module is `root`."""
        name = f"{module}.{kind}"
        if name not in self.base and module == "root":
            name = kind
        if name not in self.base:
            raise FormatError(f"the base has no array {name!r}")
        array = self.base[name]
        if array.dtype.kind != "f" or not array.ndim:
            raise FormatError(f"{name!r} must be an array of floating-point numbers, found {array.dtype} {array.shape}")
        return name


def _delta(weight: np.ndarray, record: Mapping[str, Any], held: Arrays, registry: Registry) -> np.ndarray:
    """What the adapter adds to a weight (d, k): by its method, or for grouped convolutions, which methods do not know, by its factors."""
    d, k = weight.shape
    method = registry.method(record["method"])
    if "experts" in record:
        raise FormatError("it is a stack of experts, which cannot be merged yet")
    if record.get("groups", 1) != 1 and record["method"] in ("lora", "dora"):
        return dora_update(weight, record, held) if "magnitude" in held else dense_update(record, held)
    want = method.shapes(d, k, record.get("rank", 0))
    got = {key: tensor.shape for key, tensor in held.items()}
    if want != got:
        raise FormatError(f"for a ({d}, {k}) weight its tensors must be {want}, found {got}")
    return np.asarray(method.delta(get_backend("reference"), weight, held, float(record.get("scaling", 1.0))))


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
