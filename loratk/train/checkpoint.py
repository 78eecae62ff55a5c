"""Files from which a training run goes on with the same bits: what moves is kept, what is frozen is only recognised.

A checkpoint is a flat file of arrays and strings in any store that loratk ships (.npz, .h5). Arrays: `model/NAME` for
trainable parameters and buffers, `optimizer/NAME`, `callbacks/I/NAME`, `controllers/I/NAME`. One string, `checkpoint`, is JSON
with everything else.
"""

import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ConfigError, FormatError, StoreError, choices
from ..io import strict_json
from ..io.find import find_store
from ..io.store import Contents, Store
from ..nn import Module
from .callbacks import Callback
from .model_state import fingerprint, moving

VERSION = 1
KIND = "loratk training checkpoint"


def generator_states(generators: Mapping[str, np.random.Generator]) -> dict[str, Any]:
    """The state of each generator."""
    return {name: generator.bit_generator.state for name, generator in generators.items()}


def write(
    path: Path,
    *,
    model: Module,
    optimizer: Any,
    callbacks: Sequence[Callback],
    controllers: Sequence[Mapping[str, Any]],
    meta: dict[str, Any],
    keep: int,
) -> None:
    """Write a checkpoint at once or not at all; `controllers` are their states, as `controller_states` gives them.

    Of earlier ones at that path, `keep` - 1 stay as NAME.1.SUFFIX, NAME.2.SUFFIX, ...
    """
    arrays = {f"model/{name}": np.array(value.numpy()) for name, value in moving(model).items()}
    arrays |= {f"optimizer/{name}": value for name, value in optimizer.state_dict().items()}
    states = _states("callbacks", [callback.state_dict() for callback in callbacks], arrays)
    controlled = _states("controllers", controllers, arrays)
    generators = {name: _plain(state) for name, state in generator_states(model.generators()).items()}
    meta = meta | {"kind": KIND, "version": VERSION, "callbacks": [_kind(callback) for callback in callbacks], "states": states}
    meta["controllers"] = controlled
    try:
        text = strict_json.dumps(meta | {"generators": generators})
    except ValueError as error:
        raise ConfigError(f"A state_dict() of a callback or controller must hold arrays and what JSON can express: {error}.") from error
    store = find_store(path, _stores(), for_writing=True)
    _rotate(path, keep)
    store.write(path, arrays, {"checkpoint": text})


def check_path(path: str | Path) -> Path:
    """The path of checkpoints to come. Raises ConfigError for a suffix of no store, StoreError without its folder."""
    path = Path(path)
    find_store(path, _stores(), for_writing=True)
    if not path.parent.is_dir():
        raise StoreError(f"cannot write checkpoints to '{path}': there is no folder '{path.parent}'; make it first.")
    return path


def read(path: Path) -> tuple[Contents, dict[str, Any]]:
    """The contents of a checkpoint, and what its string says. Raises FormatError, StoreError, choices."""
    contents = find_store(path, _stores()).read(path)
    try:
        meta = strict_json.loads(contents.strings["checkpoint"])
        kind, version = meta["kind"], meta["version"]
    except (KeyError, ValueError, TypeError) as error:
        raise FormatError(f"'{path}' is not a training checkpoint: it has no readable string 'checkpoint' ({error}).") from error
    if kind != KIND or version != VERSION:
        raise FormatError(f"'{path}' holds {kind!r}, version {version!r}; this loratk reads {KIND!r}, version {VERSION}.")
    missing = {"trainer", "config", "history", "frozen", "callbacks", "states", "controllers", "generators"} - meta.keys()
    if missing:
        raise FormatError(f"'{path}' is not a whole training checkpoint: {choices(missing)} is missing.")
    return contents, meta


def misfits(model: Module, callbacks: Sequence[Callback], contents: Contents, meta: dict[str, Any]) -> Iterable[str]:
    """Everything in which a checkpoint does not fit what it is to be loaded into, one line each."""
    mine, saved = moving(model), section(contents, "model/")
    for name in sorted(mine.keys() | saved.keys()):
        if name not in saved:
            yield f"{name!r} {list(mine[name].shape)} trains here (or is a buffer), but is not in the checkpoint"
        elif name not in mine:
            yield f"{name!r} {list(saved[name].shape)} is in the checkpoint, but the model has it frozen or not at all"
        else:
            want, got = (mine[name].dtype, mine[name].shape), (saved[name].dtype, saved[name].shape)
            if want != got:
                yield f"{name!r} is {want[0]} {list(want[1])} here, but {got[0]} {list(got[1])} in the checkpoint"
    if meta["frozen"] != fingerprint(model):
        yield "the frozen parameters are not those that the checkpoint was trained on (their fingerprint differs)"
    here, there = generator_states(model.generators()), meta["generators"]
    for name in sorted(here.keys() ^ there.keys()):
        yield f"the random generator {name!r} is " + ("not in the checkpoint" if name in here else "only in the checkpoint")
    for name in sorted(here.keys() & there.keys()):
        want, got = here[name]["bit_generator"], there[name].get("bit_generator")
        if want != got:
            yield f"the random generator {name!r} is a {want} here, but a {got} in the checkpoint"
    kinds = [_kind(callback) for callback in callbacks]
    if kinds != meta["callbacks"]:
        yield f"the callbacks are {kinds} here, but {meta['callbacks']} in the checkpoint"


def restore(model: Module, callbacks: Sequence[Callback], contents: Contents, meta: dict[str, Any]) -> None:
    """Put everything but the optimiser back as it was; it has been checked that it fits."""
    saved = section(contents, "model/")
    for name, parameter in moving(model).items():
        parameter.assign(saved[name])
        parameter.grad = None
    for name, generator in model.generators().items():
        generator.bit_generator.state = _revived(meta["generators"][name])
    for i, (callback, state) in enumerate(zip(callbacks, meta["states"], strict=True)):
        callback.load_state_dict(state | section(contents, f"callbacks/{i}/"))


def controlled(contents: Contents, meta: dict[str, Any]) -> list[dict[str, Any]]:
    """The state of each controller, and its `kind`."""
    return [state | section(contents, f"controllers/{i}/") for i, state in enumerate(meta["controllers"])]


def controller_states(controllers: Sequence[Any]) -> list[dict[str, Any]]:
    """What each controller wants kept, and its `kind`: what `controlled` gives back."""
    return [{"kind": _kind(controller), **controller.state_dict()} for controller in controllers]


def _states(what: str, items: Sequence[Mapping[str, Any]], arrays: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """What callbacks or controllers want kept: JSON values, and what is an array among `arrays`."""
    states: list[dict[str, Any]] = []
    for i, state in enumerate(items):
        arrays |= {f"{what}/{i}/{name}": value for name, value in state.items() if isinstance(value, np.ndarray)}
        states.append({name: value for name, value in state.items() if not isinstance(value, np.ndarray)})
    return states


def section(contents: Contents, prefix: str) -> dict[str, np.ndarray]:
    """The arrays whose names begin with a prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in contents.arrays.items() if name.startswith(prefix)}


def _stores() -> dict[str, Store]:
    from ..io.builtin import register_stores  # h5py is loaded only by those who write checkpoints

    return {store.name: store for store in register_stores()}


def _kind(item: Any) -> str:
    return type(item).__name__


def _rotate(path: Path, keep: int) -> None:
    for age in range(keep - 1, 0, -1):
        older, newer = (path.with_name(f"{path.stem}.{a}{path.suffix}") if a else path for a in (age, age - 1))
        if newer.exists():
            with suppress(FileNotFoundError):
                older.unlink()
            if age > 1:
                os.replace(newer, older)
            else:  # the newest keeps its name until the next one replaces it, so that there always is one
                try:
                    os.link(newer, older)
                except OSError:
                    shutil.copy2(newer, older)


def _plain(state: Any) -> Any:
    """The state of a bit generator as JSON values: some kinds keep arrays in theirs."""
    if isinstance(state, dict):
        return {key: _plain(value) for key, value in state.items()}
    if isinstance(state, np.ndarray):
        return {"dtype": state.dtype.name, "values": state.tolist()}
    return state.item() if isinstance(state, np.generic) else state


def _revived(state: Any) -> Any:
    if not isinstance(state, dict):
        return state
    if state.keys() == {"dtype", "values"}:
        return np.array(state["values"], state["dtype"])
    return {key: _revived(value) for key, value in state.items()}


def differences(mine: Mapping[str, Any], saved: Mapping[str, Any]) -> list[str]:
    """What two sets of settings do not share, one line each."""
    missing = "(none)"
    return [
        f"{name} is {mine.get(name, missing)!r} here, but was {saved.get(name, missing)!r}"
        for name in sorted(mine.keys() | saved.keys())
        if mine.get(name, missing) != saved.get(name, missing)
    ]
