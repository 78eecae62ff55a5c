"""Another adapter's arrays in an adapter's place, while the model serves."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, FormatError, UnknownNameError, choices, faults
from ..exchange import AdapterState, detect_format, load_adapter
from ..nn import Parameter
from . import files
from .adapter import LoraAdapter
from .fitting import ModelBase

if TYPE_CHECKING:
    from .layer_adapter import LayerAdapter
    from .model import LoraModel


def hot_swap(
    model: "LoraModel", name: str, source: str | Path | AdapterState, *, adapter: str | None = None, check_base: bool = True, **how: Any
) -> None:
    """Give an adapter the arrays, rank, scaling and config of another one: of a file or folder of any format, or of a state.

    The adapter's layers and parameters stay the same objects, so what refers to them still does. `adapter` names the one to take where
    a file holds several; `how` are the further arguments of `files.load`. It must sit in the same layers and blocks, with the same
    method, and train the same biases; ranks may differ. Raises FormatError, which lists every fault, and changes nothing then.
    Passes in other threads see the old adapter or the new one: the swap waits for those that run, and new ones wait for it.
    """
    if name not in model.adapters:
        raise UnknownNameError(f"There is no adapter {name!r} whose place another could take. Adapters: {choices(model.adapters)}.")
    state, own = (source, files.is_own(source)) if isinstance(source, AdapterState) else _read(model, source, adapter, how)
    found = files.base_faults(model, [state]) if check_base else []
    with model.changing():
        if not found:
            found = _swap(model, name, state, own)
    if found:
        where = "this state" if isinstance(source, AdapterState) else repr(str(source))
        raise FormatError(faults(f"The adapter {state.name!r} of {where} cannot take the place of {name!r} (nothing was changed):", found))


def _read(model: "LoraModel", path: str | Path, adapter: str | None, how: Mapping[str, Any]) -> tuple[AdapterState, bool]:
    """The one adapter that is meant, and whether loratk wrote it with its config."""
    asked = dict(how)
    form, rename = detect_format(path, format=asked.pop("format", None), registry=model.registry).format, asked.get("rename")
    names = None if adapter is None else [adapter]
    base = ModelBase(model, rename)
    states = load_adapter(path, format=form.name, adapters=names, base=base, registry=model.registry, **asked).states
    if len(states) != 1:
        raise UnknownNameError(f"{str(path)!r} holds {choices([state.name for state in states])}; say which one by adapter=.")
    return states[0], files.is_own(states[0], form)


def _swap(model: "LoraModel", name: str, state: AdapterState, own: bool) -> list[str]:
    """Put the state into the adapter of that name; what is wrong with it, and nothing has changed then."""
    aside = _free_name(model, name)
    found: list[str] = []
    added: list[str] = []
    try:
        try:
            files.add(model, replace(state, name=aside), added, found, own=own)
        except (ConfigError, FormatError) as error:
            found.append(str(error).replace(repr(aside), repr(state.name)))
        found = found or list(_differences(model, name, aside))
        if not found:
            for layer in model.layers.values():
                if name in layer.names():
                    _adopt(layer.adapter(name), layer.adapter(aside))
            model.replace_config(name, model.adapters[aside])
    finally:
        for other in added:
            model.remove_adapter(other)
    return found


def _free_name(model: "LoraModel", name: str) -> str:
    aside = f"{name}-new"
    while aside in model.adapters:
        aside += "-"
    return aside


def _differences(model: "LoraModel", name: str, aside: str) -> Iterator[str]:
    """Where two adapters do not sit alike."""
    for where, layer in model.layers.items():
        here, there = (each in layer.names() for each in (name, aside))
        if here and not there:
            yield f"missing: layer {where!r} has no part in it"
        elif there and not here:
            yield f"unexpected: layer {where!r}, which {name!r} does not adapt"
        elif here:
            old, new = layer.adapter(name), layer.adapter(aside)
            if (old.bias is None) != (new.bias is None):
                yield (
                    f"layer {where!r}: the bias "
                    + ("trains in it, but not in" if old.bias is None else "does not train in it, but in")
                    + f" {name!r}"
                )
            mine, theirs = old.blocks(), new.blocks()
            for block in sorted(mine.keys() | theirs.keys()):
                part = f"layer {where!r}" + (f", block {block!r}" if block else "")
                if block not in theirs or block not in mine:
                    yield f"{'missing' if block in mine else 'unexpected'}: {part}"
                elif mine[block].method.name != theirs[block].method.name:
                    yield f"{part}: its method is {theirs[block].method.name!r}, that of {name!r} is {mine[block].method.name!r}"
                elif mine[block].tensors().keys() != theirs[block].tensors().keys():
                    yield f"{part}: it has {choices(theirs[block].tensors())}, {name!r} has {choices(mine[block].tensors())}"


def _adopt(old: "LayerAdapter", new: "LayerAdapter") -> None:
    """Take over the arrays and settings of another one, in place; what is frozen stays frozen."""
    for block, part in old.blocks().items():
        other = new.block(block)
        assert isinstance(other, LoraAdapter)
        for key, value in vars(other).items():
            if isinstance(value, Parameter):
                _take(vars(part)[key], value)
            elif key != "training" and not key.startswith("_"):
                setattr(part, key, value)
    if old.bias is not None and new.bias is not None:
        _take(old.bias, new.bias)


def _take(mine: Parameter, other: Parameter) -> None:
    mine.grad = None
    mine.data = other.data if mine.backend is other.backend else mine.backend.asarray(other.numpy())
