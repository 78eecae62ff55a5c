"""Adapters of a model to and from files. The layout is public: docs/format.md."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, FormatError, StateError, choices, faults
from ..exchange import AdapterFormat, AdapterState, detect_format, load_adapter, save_adapter
from ..exchange.stores import StoreFormat
from ..exchange.transform import rename as renamed
from .config import LoraConfig
from .fitting import ModelBase, fitted, record_faults, with_biases
from .frozen import plain
from .resizing import chosen

if TYPE_CHECKING:
    from .model import LoraModel


def adapter_state(model: "LoraModel", adapter: str, metadata: Mapping[str, str] | None = None) -> AdapterState:
    """An adapter as plain data: its config, arrays (copies), a record for each layer, and the base's fingerprint.

    Of an adapter with a rank that `use_rank` chose, that rank; a method that only trains otherwise than LoRA is LoRA in the records.
    """
    config, tensors = chosen(model, adapter)
    modules: dict[str, dict[str, Any]] = {}
    for name, layer in model.layers.items():
        if adapter not in layer.names():
            continue
        held = layer.adapter(adapter)
        if held.bias is not None:
            modules[name] = {"method": "bias"}
        for block, part in held.blocks().items():
            assert layer.layer_type is not None
            method = part.method.form or part.method.name
            record: dict[str, Any] = {"method": method, "layer_type": layer.layer_type.name, "shape": [part.d, part.k]}
            record |= {"rank": part.rank_now or part.rank} if part.rank else {}
            if part.method.scaled or part.method.takes_init:
                record |= {"alpha": part.alpha, "scaling": part.scaling_at(part.rank_now)}
            record |= {"options": plain(part.settings.options)} if part.settings.options and part.method.form is None else {}
            if window := layer.layer_type.window(layer.base):
                record["kernel"] = list(window)
            if block:
                record["columns"] = list(layer.layer_type.blocks(layer.base)[block])
            modules[".".join(piece for piece in (name, block) if piece)] = record
    return AdapterState(adapter, config.to_dict(), tensors, modules, model.fingerprint(), dict(metadata or {}))


def save(
    model: "LoraModel",
    path: str | Path,
    *,
    adapters: Sequence[str] | str | None = None,
    metadata: Mapping[str, str] | None = None,
    format: str | None = None,
    rename: Mapping[str, str] | None = None,
    options: Mapping[str, Any] | None = None,
) -> list[str]:
    """Write adapters (a name, names, or all if none are named) to one file or folder, and return what was decided on the way.

    The format is that of the suffix unless one is named; `options` are its own. `metadata` is kept with each adapter. `rename` gives
    modules other paths, as in `exchange.transform.rename`. Raises ConfigError for what the format cannot hold. After an error or an
    interruption the old file, if there was one, is still there, whole.
    """
    names = list(model.adapters if adapters is None else _as_names(adapters))
    if not names:
        raise StateError("There is no adapter to save.")
    states = [adapter_state(model, name, metadata) for name in names]
    states = renamed(states, rename) if rename else states
    base = ModelBase(model, rename, outward=True)
    return save_adapter(path, states, format=format, base=base, options=options, registry=model.registry)


def load(
    model: "LoraModel",
    path: str | Path,
    *,
    adapters: Sequence[str] | str | None = None,
    check_base: bool = True,
    format: str | None = None,
    rename: Mapping[str, str] | None = None,
    options: Mapping[str, Any] | None = None,
    allow_missing: Collection[str] = (),
) -> list[str]:
    """Add adapters of a file or folder (a name, names, or all if none are named) to a model, not active yet; returns their names.

    The format is found by the content unless one is named; `rename`, `options` and `allow_missing` are those of
    `exchange.load_adapter`, whose notes tell what it decides. Raises FormatError, listing every fault, if an adapter was made for another
    base (`check_base=False` takes it if its shapes fit) or its arrays do not fit this model; no adapter is added then.
    """
    found_format = detect_format(path, format=format, registry=model.registry).format
    reading = load_adapter(
        path, format=found_format.name, adapters=None if adapters is None else _as_names(adapters), base=ModelBase(model, rename),
        options=options, allow_missing=allow_missing, rename=rename, registry=model.registry,
    )  # fmt: skip
    if not reading.states:
        raise FormatError(f"There is no adapter in {str(path)!r}.")
    taken = [state.name for state in reading.states if state.name in model.adapters]
    if taken:
        raise StateError(f"The model has an adapter {choices(taken)} already; remove_adapter() it first, or choose others with adapters=.")
    found = base_faults(model, reading.states) if check_base else []
    added: list[str] = []
    for state in reading.states:
        try:
            add(model, state, added, found, own=is_own(state, found_format))
        except (ConfigError, FormatError) as error:
            found.append(f"adapter {state.name!r}: {error}")
    if found:
        for name in added:
            model.remove_adapter(name)
        raise FormatError(faults(f"The adapters in {str(path)!r} do not fit this model (none was added):", found))
    return added


def base_faults(model: "LoraModel", states: Sequence[AdapterState]) -> list[str]:
    """Which adapters were made for another base than the model's, a line each."""
    mine = model.fingerprint()
    return [
        f"adapter {state.name!r} was made for another base: fingerprint {state.fingerprint[:12]}..., this base has {mine[:12]}...; "
        "build the base it was trained on, or pass check_base=False if you know that it fits"
        for state in states
        if state.fingerprint and state.fingerprint != mine
    ]


def is_own(state: AdapterState, form: AdapterFormat | None = None) -> bool:
    """Whether a state, of a file of this format if of any, is one that a model saved: with a config, and its methods' own parameters."""
    stored = form is None or isinstance(form, StoreFormat)
    return stored and bool(state.config) and all(record.get("orientation") != "torch" for record in state.modules.values())


def add(model: "LoraModel", state: AdapterState, added: list[str], found: list[str], *, own: bool) -> None:
    """Add one adapter; `own` is whether loratk wrote it, with its config. Its name goes into `added`, its faults into `found`."""
    state = state if own else fitted(model, state)
    model.add_adapter(state.name, LoraConfig.from_dict(state.config), check_rank=False, filled=False)
    added.append(state.name)
    want = adapter_state(model, state.name).modules
    wrong = _record_faults(want, state.modules) if own else record_faults(model, want, state.modules)
    found += [f"adapter {state.name!r}: {fault}" for fault in wrong]
    model.load_state((state if own else with_biases(state, model.state(state.name))).tensors, state.name)


def _as_names(adapters: Sequence[str]) -> Sequence[str]:
    """A single name as a list of it: a string is a sequence of strings too."""
    return [adapters] if isinstance(adapters, str) else adapters


def _record_faults(want: Mapping[str, Mapping[str, Any]], got: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Where the file's record of a layer says otherwise than the model that was built from its config."""
    return sorted(
        f"{name!r}: the file says {key} = {got[name][key]!r}, its config makes it {want[name][key]!r}"
        for name in want.keys() & got.keys()
        for key in want[name].keys() & got[name].keys()
        if want[name][key] != got[name][key]
    )
