"""Adapters of any format folded into a base's weights, from files alone, one array at a time."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ConfigError, FormatError, faults
from ..exchange import AdapterState, Checkpoint, detect_format, load_adapter
from ..exchange.cautions import scale_lines
from ..exchange.transform import cast_array
from ..exchange.transform import select as selected
from ..io import LazyArrays, SafetensorsStore, Store, StoreBase, find_store, write_safetensors
from ..lora.fingerprint import fingerprint
from ..plugins import Registry, default_registry
from .adapters import Exported, check_request, split_options
from .merging import Merging


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
    progress: Callable[[str, int], None] = lambda name, count: None,
) -> Exported:
    """Write a base's arrays with adapters (all if None) folded in.

    `base` is a file of arrays by dotted parameter names, as `Module.state_dict` gives them, or torch, in safetensors, or a folder of them;
    `order` is that of its axes, as in `Checkpoint`. Arrays that no adapter changes, and its strings, are copied; bfloat16 stays that in
    safetensors, and becomes float32 in other stores. One array is in memory at a time. `to` names the store of the destination, `progress`
    is told each array before it is made, and their count. Raises FormatError, listing every fault, for an adapter that was made
    for another base (`check_base=False` takes it if its shapes fit) or does not fit; otherwise as `export_adapters`.
    """
    registry, destination = registry or default_registry(), Path(destination)
    check_request(destination, dtype, force)
    target = find_store(destination, registry.stores, to, for_writing=True)
    if dtype == "bfloat16" and not isinstance(target, SafetensorsStore):
        raise ConfigError(f"Of the stores only safetensors has bfloat16, and '{destination}' is {target.name!r}; choose another dtype.")
    with Checkpoint(base, registry.stores, order) as opened:
        found_as = detect_format(source, format=format, registry=registry)
        reads, writes = split_options(options or {}, {"from": found_as.format.options, "to": getattr(target, "options", {})})
        target = target.configured(writes) if isinstance(target, StoreBase) else target
        reading = load_adapter(
            source, format=found_as, adapters=adapters, base=opened, options=reads, allow_missing=allow_missing, rename=rename,
            registry=registry,
        )  # fmt: skip
        states = selected(reading.states, select) if select else reading.states
        found = list(_foreign(states, opened.arrays())) if check_base else []
        merging = Merging(opened.arrays(), registry, opened.order, opened.input_first)
        if not found:
            merging.plan(states, found)
        if found:
            raise _misfit(destination, base, found)
        writing = _Writing(merging, opened, dtype, progress, lambda faults: _misfit(destination, base, faults))
        said = _write(target, destination, writing, opened.strings)
    notes = [*reading.notes, opened.note]
    notes += [f"adapter {state.name!r}: {line}" for state in states for line in scale_lines(state)]
    return Exported([state.name for state in states], list(dict.fromkeys([*notes, *said])))


def _misfit(destination: Path, base: str | Path, found: Sequence[str]) -> FormatError:
    return FormatError(faults(f"Nothing was written to '{destination}': the adapters do not fit the base '{base}':", found))


def _write(target: Store, destination: Path, writing: "_Writing", strings: Mapping[str, str]) -> list[str]:
    if isinstance(target, SafetensorsStore):
        write_safetensors(destination, writing.arrays, strings, writing.bfloat16)
        return writing.notes()
    target.write(destination, writing.arrays, strings)
    widened = [f"{len(writing.bfloat16)} arrays in bfloat16 became float32: {target.name} has no bfloat16"] if writing.bfloat16 else []
    return widened + writing.notes()


class _Writing:
    """The arrays of the destination, made one by one while they are written; what is wrong with their values is raised with the last."""

    def __init__(
        self,
        merging: Merging,
        base: Checkpoint,
        dtype: str | None,
        progress: Callable[[str, int], None],
        error: Callable[[Sequence[str]], Exception],
    ) -> None:
        own = base.arrays()
        infos = {name: own.info(name) for name in own}
        floats = [name for name, (_, kind) in infos.items() if kind.kind == "f"]
        self.bfloat16 = {"bfloat16": frozenset(floats), None: base.bfloat16}.get(dtype, frozenset())
        if dtype is not None:
            infos |= {name: (infos[name][0], np.dtype("float32" if dtype == "bfloat16" else dtype)) for name in floats}
        self.arrays = LazyArrays(infos, self._make)
        self._merging, self._own, self._progress, self._error = merging, own, progress, error
        self._changed, self._left, self._found = set(merging.changed), set(infos), list[str]()
        self._moved = self._lost = 0

    def _make(self, name: str) -> np.ndarray:
        self._progress(name, len(self.arrays))
        dtype = self.arrays.info(name)[1]
        kind = "bfloat16" if name in self.bfloat16 else dtype.name
        if name in self._changed:
            array = self._merging.array(name, kind, self._found)
            self._count(name, array, kind)
        else:
            array = cast_array(name, self._own[name], kind, self._found)
        self._left.discard(name)
        if self._found and not self._left:
            raise self._error(self._found)
        return array

    def _count(self, name: str, array: np.ndarray, kind: str) -> None:
        """Count the numbers of changed arrays that rounding to half precision left as they were."""
        if kind in ("bfloat16", "float16"):
            self._moved += array.size
            self._lost += int(np.count_nonzero(array == self._own[name]))

    def notes(self) -> list[str]:
        """How much of the update half precision swallowed."""
        share = 100 * self._lost / self._moved if self._moved else 0.0
        if share < 0.05:
            return []
        return [f"{share:.1f} % of the numbers in changed arrays are as before: half precision rounds small updates away (--dtype float32)"]


def _foreign(states: Sequence[AdapterState], base: Mapping[str, np.ndarray]) -> Iterator[str]:
    if not any(state.fingerprint for state in states):
        return
    mine = fingerprint(base)
    for state in states:
        if state.fingerprint and state.fingerprint != mine:
            yield (
                f"adapter {state.name!r} was made for another base (fingerprint {state.fingerprint[:12]}..., this one has {mine[:12]}...); "
                "give the weights it was trained on, or pass check_base=False (--any-base) if you know that they fit"
            )
