"""The adapter that leads from one checkpoint to another."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import ConfigError, LoratkError, faults
from ..exchange import AdapterState, Checkpoint, config_for, formats_of
from ..exchange.detect import choose, find_format
from ..exchange.transform import DTYPES
from ..lora.fingerprint import fingerprint
from ..plugins import Registry, default_registry
from .certificate import Certificate, Entry
from .extract_modules import Extractor
from .extract_plan import Wanted, check_choice, plan
from .lineage import LINEAGE
from .linear import Module
from .ranks import Rule
from .resizing import refuse_existing, written
from .result import Result, Track, untracked


@dataclass(frozen=True, eq=False)
class Extracted(Result):
    """An adapter, its certificate, how many modules are the same in both checkpoints, and what the adapter was written as."""

    unchanged: int = 0
    format: str = ""

    def to_json(self) -> dict[str, Any]:
        """The certificate as plain data for JSON, with the method of each module."""
        told = self.certificate.to_json()
        modules = {name: {"method": self.state.modules[name]["method"], **entry} for name, entry in told["modules"].items()}
        return {"name": self.state.name, **told, "modules": modules, "unchanged": self.unchanged,
                "format": self.format or None, "notes": self.notes}  # fmt: skip


def extract(
    base: str | Path,
    tuned: str | Path,
    destination: str | Path | None = None,
    *,
    rank: int | None = None,
    ratio: float | None = None,
    energy: float | None = None,
    error: float | None = None,
    patterns: Mapping[str, Rule] | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    full: Sequence[str] = (),
    embeddings: str = "full",
    tables: Sequence[str] = (),
    whole: str = "full",
    dtype: str = "float32",
    seed: int = 0,
    name: str = "default",
    order: str | None = None,
    to: str | None = None,
    options: Mapping[str, Any] | None = None,
    force: bool = False,
    dry_run: bool = False,
    registry: Registry | None = None,
    track: Track = untracked,
) -> Extracted:
    """The adapter that leads from a base to a tuned checkpoint of the same model, and write it if a destination is given.

    Both are files of arrays, or folders of them, read one tensor at a time. Each weight that changed becomes the factors nearest to its
    difference, of the rank that the rule needs (`ranks.Rule`; `patterns` have rules of their own), from its singular values, all of them or
    the leading ones of a random sketch drawn by `seed`; the error of each is measured on what is stored. Norms, embeddings (those of usual
    names and what `tables` matches, unless `embeddings` is "lora") and what `full` matches are kept whole, as they are in the tuned
    checkpoint, or with `whole` "diff" as differences; a changed bias is kept as its change. `include` and `exclude` choose modules by their
    paths, as patterns of targets. `dtype` is that of factors; whole modules keep theirs. `order` is that of the checkpoints' axes, as in
    `Checkpoint`. The destination is written as by `resize`. Raises ConfigError that lists what is in one checkpoint only, shapes that
    differ, and patterns without effect.
    """
    default = Rule(rank, ratio, energy, error)
    if default == Rule():
        raise ConfigError("extracting needs a rule for the rank: rank, ratio, energy or error")
    check_choice("embeddings", embeddings, ("full", "lora"))
    check_choice("whole", whole, ("full", "diff"))
    check_choice("dtype", dtype, DTYPES)
    registry = registry or default_registry()
    if destination is not None:
        refuse_existing(destination, force)
    formats = formats_of(registry)
    target = None if destination is None else find_format(to, formats) if to else choose(Path(destination), formats)
    wanted = Wanted(tuple(include), tuple(exclude), tuple(full), dict(patterns or {}), embeddings, tuple(tables))
    with Checkpoint(base, registry.stores, order) as old, Checkpoint(tuned, registry.stores, order) as new:
        if old.order != new.order:
            raise ConfigError(f"the base is taken {old.order}, the tuned checkpoint {new.order}; convert one of them, or give the order")
        planned, notes = plan(old, new, wanted, default)
        notes = [old.note, *_dtype_notes(old, new), *notes]
        extractor = Extractor(old, new, dtype, whole, seed)
        modules, entries = _modules(extractor, planned, track)
        notes += extractor.notes
        if not modules:
            raise ConfigError(f"'{tuned}' is the same as the base '{base}' in all {len(planned)} modules; there is nothing to extract")
        lineage = {"rule": "extract", "base": Path(base).name, "tuned": Path(tuned).name, "seed": seed}
        lineage |= {key: value for key, value in vars(default).items() if value is not None}
        mark = fingerprint(old.arrays()) if target is None or target.carries.get("fingerprint") != "no" else ""
        state = _state(name, modules, mark, {LINEAGE: json.dumps(lineage)})
        if target is not None and destination is not None:
            notes += written(destination, [state], target, old, options, registry, dry_run)
    return Extracted(state, Certificate(entries), list(dict.fromkeys(notes)), len(planned) - len(modules), target.name if target else "")


def _modules(extractor: Extractor, planned: Mapping[str, Any], track: Track) -> tuple[dict[str, Module], dict[str, Entry]]:
    found: list[str] = []
    modules: dict[str, Module] = {}
    entries: dict[str, Entry] = {}
    for path in track(list(planned), "extracting"):
        try:
            made = extractor.module(path, planned[path])
        except LoratkError as fault:
            found.append(f"module {path!r}: {fault}")
            continue
        if made is not None:
            modules[path], entries[path] = made
    if found:
        raise ConfigError(faults("not everything can be extracted; leave modules out with exclude (--exclude):", found))
    return modules, entries


def _state(name: str, modules: Mapping[str, Module], mark: str, metadata: dict[str, str]) -> AdapterState:
    tensors = {f"{path}.{key}": array for path, (_, held) in modules.items() for key, array in held.items()}
    state = AdapterState(name, {}, tensors, {path: record for path, (record, _) in modules.items()}, mark, metadata)
    try:
        return replace(state, config=config_for(state))
    except ConfigError:  # whole modules, experts: what no config can say
        return state


def _dtype_notes(old: Checkpoint, new: Checkpoint) -> list[str]:
    """That the checkpoints are stored in different dtypes, whose rounding is in the differences."""
    kinds: Counter[tuple[str, str]] = Counter()
    left, right = old.arrays(), new.arrays()
    for name in left:
        if name in right and left.info(name)[1].kind == right.info(name)[1].kind == "f":
            one, two = ("bfloat16" if name in file.bfloat16 else arrays.info(name)[1].name for file, arrays in ((old, left), (new, right)))
            kinds[one, two] += one != two
    return [
        f"{count} arrays are {one} in the base and {two} in the tuned checkpoint: their differences hold that rounding"
        for (one, two), count in kinds.items()
        if count
    ]
