"""Everything that can be checked about an adapter file without the model, and with the base's weights whether it fits them."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from .convert.merging import Merging
from .errors import ConfigError, FormatError, together
from .exchange import AdapterState, Checkpoint, detect_format, load_adapter
from .exchange.cautions import cautions
from .exchange.others import KNOWN
from .exchange.state import value_faults
from .io import find_store
from .io.seal import has_seal
from .lora.fingerprint import fingerprint
from .plugins import Registry, default_registry


@dataclass(frozen=True)
class Verification:
    """What was checked and holds, what does not (`faults`), what is worth a second look, and what could not be checked."""

    path: str
    format: str
    passed: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    cautions: list[str] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        """Whether there is no fault."""
        return not self.faults


def verify(
    path: str | Path,
    *,
    format: str | None = None,
    base: Checkpoint | None = None,
    options: Mapping[str, Any] | None = None,
    allow_missing: Collection[str] = (),
    registry: Registry | None = None,
) -> Verification:
    """Check a file or folder of adapters: checksums, structure, values; with a base also names, shapes and fingerprint.

    Raises StoreError where there is nothing to read, ConfigError where the format cannot be told, or needs something that was not given.
    """
    registry, path = registry or default_registry(), Path(path)
    try:
        found = detect_format(path, format=format, registry=registry)
    except FormatError as error:
        return Verification(str(path), "unknown", faults=[str(error)])
    done = Verification(str(path), found.format.name, passed=[f"format: {found.format.title} ({found.evidence})"])
    if not _checksums(path, done, registry):
        return done
    try:
        reading = load_adapter(
            path, format=found, base=base, options=options, allow_missing=allow_missing, finite=False, registry=registry
        )  # fmt: skip
    except FormatError as error:
        done.faults.append(str(error))
        return done
    tensors = sum(len(state.tensors) for state in reading.states)
    done.passed.append(f"structure: {_count(len(reading.states), 'adapter')}, {_count(tensors, 'tensor')}, all there and of fitting shapes")
    for state in reading.states:
        _values(state, done)
    if base is not None:
        _fits(reading.states, base, registry, done)
    return done


def _checksums(path: Path, done: Verification, registry: Registry) -> bool:
    """Whether the file is as it was written, as far as its store can tell."""
    try:
        store = None if path.is_dir() else find_store(path, registry.stores)
    except (FormatError, ConfigError):
        store = None  # a container that is no store's, such as GGUF
    try:
        if store is not None:
            with store.open(path) as reader:
                reader.verify()
    except FormatError as error:
        done.faults.append(str(error))
        return False
    if store is not None and has_seal(path):
        done.passed.append("checksums: every byte is as it was written")
    else:
        done.unchecked.append("checksums: there are none, so a flipped bit in a number would not be noticed")
    return True


def _values(state: AdapterState, done: Verification) -> None:
    broken = list(value_faults(state.tensors))
    done.faults.extend(f"adapter {state.name!r}: {line}" for line in broken)
    if not broken:
        done.passed.append(f"adapter {state.name!r}: all {sum(array.size for array in state.tensors.values()):,} numbers are finite")
    done.cautions.extend(f"adapter {state.name!r}: {line}" for line in cautions(state) if line not in broken)


def _fits(states: list[AdapterState], base: Checkpoint, registry: Registry, done: Verification) -> None:
    """Names and shapes by the plan of a merge, which loads no weight, and the fingerprint where there is one."""
    known = {*registry.methods, *KNOWN, "bias", "full", "diff"}
    for state in states:
        modules = {module: record for module, record in state.modules.items() if record["method"] in known}
        tensors = {key: array for key, array in state.tensors.items() if key.rpartition(".")[0] in modules}
        wrong: list[str] = []
        Merging(base.arrays(), registry, base.order, base.input_first).plan([replace(state, modules=modules, tensors=tensors)], wrong)
        done.faults.extend(together(wrong))
        if other := sorted({record["method"] for module, record in state.modules.items() if module not in modules}):
            done.unchecked.append(f"adapter {state.name!r}: whether its modules of {', '.join(other)} fit the base")
        if not wrong:
            done.passed.append(f"adapter {state.name!r}: {_count(len(modules), 'module')} fit the base '{base.path}' ({base.note})")
    if any(state.fingerprint for state in states):
        mine = fingerprint(base.arrays())
        for state in states:
            if state.fingerprint == mine:
                done.passed.append(f"adapter {state.name!r}: made for just these weights (fingerprint {mine[:12]}...)")
            elif state.fingerprint:
                theirs = state.fingerprint[:12]
                done.faults.append(
                    f"adapter {state.name!r} was made for another base (fingerprint {theirs}..., this one has {mine[:12]}...)"
                )


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"
