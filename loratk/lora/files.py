"""Adapters of a model to and from files. The layout is public: docs/format.md."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, FormatError, StateError, choices, faults
from ..exchange import AdapterState, read_adapters, write_adapters
from .config import LoraConfig

if TYPE_CHECKING:
    from .model import LoraModel


def adapter_state(model: "LoraModel", adapter: str, metadata: Mapping[str, str] | None = None) -> AdapterState:
    """An adapter as plain data: its config, arrays (copies), a record for each layer, and the base's fingerprint."""
    tensors = model.state(adapter)
    modules: dict[str, dict[str, Any]] = {}
    for name, layer in model.layers.items():
        if adapter not in layer.names():
            continue
        held = layer.adapter(adapter)
        if held.bias is not None:
            modules[name] = {"method": "bias"}
        for block, part in held.blocks().items():
            assert layer.layer_type is not None
            record = {
                "method": part.method.name,
                "layer_type": layer.layer_type.name,
                "shape": [part.d, part.k],
                "rank": part.rank,
                "alpha": part.alpha,
                "scaling": part.scaling,
            }
            if block:
                record["columns"] = list(layer.layer_type.blocks(layer.base)[block])
            modules[".".join(piece for piece in (name, block) if piece)] = record
    config = model.adapters[adapter].to_dict()
    return AdapterState(adapter, config, tensors, modules, model.fingerprint(), dict(metadata or {}))


def save(model: "LoraModel", path: str | Path, *, adapters: Sequence[str] | None = None, metadata: Mapping[str, str] | None = None) -> None:
    """Write adapters (a name, names, or all if none are named) to one file, its format by suffix; `metadata` is kept with each of them.

    Atomic: after an error or an interruption the old file, if there was one, is still there, whole.
    """
    names = list(model.adapters if adapters is None else _as_names(adapters))
    if not names:
        raise StateError("There is no adapter to save.")
    write_adapters(path, [adapter_state(model, name, metadata) for name in names], stores=model.registry.stores)


def load(model: "LoraModel", path: str | Path, *, adapters: Sequence[str] | None = None, check_base: bool = True) -> list[str]:
    """Add adapters of a file (a name, names, or all if none are named) to a model, not active yet, and return their names.

    Raises FormatError, listing every fault, if an adapter was made for another base (`check_base=False` takes it if its
    shapes fit) or its arrays do not fit this model; no adapter is added then.
    """
    states = read_adapters(path, names=None if adapters is None else _as_names(adapters), stores=model.registry.stores)
    if not states:
        raise FormatError(f"There is no adapter in {str(path)!r}.")
    taken = [state.name for state in states if state.name in model.adapters]
    if taken:
        raise StateError(f"The model has an adapter {choices(taken)} already; remove_adapter() it first, or choose others with adapters=.")
    mine, found = model.fingerprint(), []
    for state in states:
        if check_base and state.fingerprint and state.fingerprint != mine:
            found.append(
                f"adapter {state.name!r} was made for another base: fingerprint {state.fingerprint[:12]}..., this base has {mine[:12]}...; "
                "build the base it was trained on, or pass check_base=False if you know that it fits"
            )
    added: list[str] = []
    for state in states:
        try:
            model.add_adapter(state.name, _config(state), check_rank=False)
            added.append(state.name)
            found += [f"adapter {state.name!r}: {fault}" for fault in _record_faults(model, state)]
            model.load_state(state.tensors, state.name)
        except (ConfigError, FormatError) as error:
            found.append(f"adapter {state.name!r}: {error}")
    if found:
        for name in added:
            model.remove_adapter(name)
        raise FormatError(faults(f"The adapters in {str(path)!r} do not fit this model (none was added):", found))
    return added


def _as_names(adapters: Sequence[str]) -> Sequence[str]:
    """A single name as a list of it: a string is a sequence of strings too."""
    return [adapters] if isinstance(adapters, str) else adapters


def _config(state: AdapterState) -> LoraConfig:
    return LoraConfig.from_dict(state.config)


def _record_faults(model: "LoraModel", state: AdapterState) -> list[str]:
    """Where the file's record of a layer says otherwise than the model that was built from its config."""
    want, found = adapter_state(model, state.name).modules, []
    for name in want.keys() & state.modules.keys():
        for key in want[name].keys() & state.modules[name].keys():
            if want[name][key] != state.modules[name][key]:
                found.append(f"{name!r}: the file says {key} = {state.modules[name][key]!r}, its config makes it {want[name][key]!r}")
    return sorted(found)
