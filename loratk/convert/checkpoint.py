"""`merge`: adapters of any format added to a checkpoint's files, from files alone, without a model."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from .. import __version__
from ..errors import ConfigError, FormatError, StoreError, faults
from ..exchange import Checkpoint
from ..exchange.transform import DTYPES
from ..plugins import Registry, default_registry
from .checksums import adapter_sha256
from .files import Source
from .job import ChangedArray, Job
from .ledger import BLANK, LEDGER, Ledger, Merge, MergedAdapter, appended, check_new, read_ledger
from .loading import Given, Loaded, foreign, load
from .merging import Merging
from .residual import write_residual
from .rounding import HALVES, NEAREST, STOCHASTIC, Rounding, total
from .targets import Target, check_dtype, check_free, choose_target
from .writing import Order, Written, write


@dataclass(frozen=True)
class Merged:
    """What a merge wrote, or in a dry run would write.

    adapters: in their order, with weights and hashes. stochastic: whether rounding is by chance. changed: the arrays that change, `arrays`
    is how many there are, `size` their bytes. rounding: of all changed arrays together, None in a dry run. before, after: the checksums of
    all arrays, "" in a dry run. residual: the file that was kept to undo it, and its bytes. resumed:
    arrays that an interrupted merge had finished. faults: in a dry run what does not fit; else it is raised.
    """

    path: Path
    base: Path
    adapters: list[MergedAdapter]
    changed: list[ChangedArray]
    arrays: int
    size: int
    written: bool
    stochastic: bool = False
    rounding: Rounding | None = None
    before: str = ""
    after: str = ""
    residual: Path | None = None
    residual_size: int = 0
    resumed: int = 0
    notes: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def merge(
    base: str | Path,
    adapters: Given | Sequence[Given],
    out: str | Path,
    *,
    weights: Sequence[float] | None = None,
    names: Collection[str] | None = None,
    format: str | None = None,
    to: str | None = None,
    options: Mapping[str, Any] | None = None,
    order: str | None = None,
    select: Sequence[str] = (),
    rename: Mapping[str, str] | None = None,
    allow_missing: Collection[str] = (),
    dtype: str | None = None,
    check_base: bool = True,
    again: Collection[str] = (),
    new_ledger: bool = False,
    stochastic: bool = False,
    seed: int = 0,
    residual: str | Path | None = None,
    residual_level: int = 1,
    force: bool = False,
    resume: bool = True,
    dry_run: bool = False,
    registry: Registry | None = None,
    progress: Callable[[str, int], None] = lambda name, count: None,
) -> Merged:
    """Write a checkpoint with adapters added to its arrays: W' = W + sum of weight times update, rounded once.

    base: a file of arrays by dotted parameter names in any store, a folder of safetensors shards, or its index; `order` is that of its
    axes, as in `Checkpoint`. adapters: files or folders of any format, or states; of a file all adapters, or those called `names`. out: a
    file, by its suffix or the store `to`, or for a folder a folder. An update of plain LoRA is computed in float32 for bfloat16 and
    float16, in float64 for other dtypes, every other method in float64. Weights below 1 of a whole module that replaces the base's go that
    far.

    dtype: of all floating-point arrays of the result. stochastic: round by chance, the expectation being exact; the same `seed` gives the
    same bits. residual: a file to keep what `unmerge` needs to restore the bits, compressed at a level from 1 to 9. again: names of
    adapters to add although they were merged before. new_ledger: forget what the base's ledger says. check_base: whether adapters must have
    been made for just this base, where they tell. resume: go on from what an interrupted merge of the same kind left beside `out`.

    Memory: a few times the largest array that has to be made as a whole (any method but plain LoRA, other dtypes), else some megabytes for
    each thread. Raises FormatError with all that does not fit, StateError for what was merged before, ConfigError, StoreError.
    """
    registry, out, given = registry or default_registry(), Path(out), [adapters] if isinstance(adapters, Given) else list(adapters)
    weights = [1.0] * len(given) if weights is None else [float(weight) for weight in weights]
    _check(out, dtype, weights, given, residual, force)
    with Checkpoint(base, registry.stores, order) as opened:
        target = choose_target(out, opened, registry.stores, to)
        check_free(target, opened, force)
        check_dtype(target, dtype)
        loaded = load(
            given, weights, opened, registry, names=names, format=format, options=options, select=select, rename=rename,
            allow_missing=allow_missing, store=getattr(target.store, "options", {}),
        )  # fmt: skip
        target = choose_target(out, opened, registry.stores, to, loaded.store)
        ledger = _ledger(opened, new_ledger)
        check_new(ledger, loaded.adapters, again)
        found, mark = foreign(loaded.states, opened, ledger) if check_base else ([], ledger.fingerprint if ledger else "")
        merging = Merging(opened.arrays(), registry, opened.order, opened.input_first)
        if not found:
            merging.plan(loaded.states, found, [adapter.weight for adapter in loaded.adapters])
        if found and not dry_run:
            raise _misfit(out, base, found)
        source = Source(opened)
        job = Job(merging, source, target, dtype, seed if stochastic else None)
        if stochastic and not any(item.key is not None for item in job.items):
            raise ConfigError("stochastic rounding would have no effect: nothing is rounded here")
        notes = list(dict.fromkeys([*loaded.notes, opened.note, *_notes(target, job)]))
        planned = Merged(
            out, Path(base), loaded.adapters, job.changed(), len(job.items), job.size(), False, stochastic, notes=notes, faults=found
        )  # fmt: skip
        if dry_run:
            return replace(planned, faults=[*found, *_room(planned, job)])
        sealing = _Sealing(opened, ledger, loaded, mark, dtype, seed if stochastic else None)
        anew = [item.name for item in job.items if not item.copied]
        keeping = _Keeping(opened, registry, anew, None if residual is None else Path(residual), residual_level)
        written = write(
            Order(
                target, source, job.items, sealing.strings, job.explain, lambda lines: _misfit(out, base, lines),
                job=sealing.job(), resume=resume, finish=keeping.keep, progress=progress,
            )
        )  # fmt: skip
    return _result(planned, written, keeping)


def _result(planned: Merged, written: Written, keeping: _Keeping) -> Merged:
    """What was planned, with what came of it."""
    arrays = [replace(array, rounding=written.arrays[array.name].rounding) for array in planned.changed]
    notes = list(planned.notes)
    if written.resumed:
        notes.append(f"{written.resumed} of {planned.arrays} arrays were there from a merge that was interrupted")
    halves = total(array.rounding for array in arrays if array.rounding is not None and array.dtype in HALVES)
    if halves.kept_share >= 0.0005 and not planned.stochastic:
        notes.append(
            f"{100 * halves.kept_share:.1f} % of the numbers in changed arrays are as before: half precision rounds small updates away "
            f"(--dtype float32); of the update's norm {100 * halves.lost_share:.2g} % is lost"
        )
    return replace(
        planned, written=True, changed=arrays, rounding=total(array.rounding for array in arrays if array.rounding is not None),
        before=written.before, after=written.after, residual=keeping.path, residual_size=keeping.size, resumed=written.resumed,
        notes=notes,
    )  # fmt: skip


@dataclass
class _Sealing:
    """What the ledger of the result says, and what tells this merge from others."""

    base: Checkpoint
    ledger: Ledger | None
    loaded: Loaded
    fingerprint: str
    dtype: str | None
    seed: int | None

    def strings(self, before: str, after: str) -> dict[str, str]:
        """The ledger, by the checksums of all arrays. Raises FormatError where the base is not what its own ledger says."""
        if before != BLANK and self.ledger is not None and self.ledger.merges[-1].after != before:
            raise FormatError(
                f"'{self.base.path}' is not what its ledger says: its arrays were changed after the last merge. Get a new copy, or pass "
                "new_ledger=True (--new-ledger) to begin a new ledger with them as they are"
            )
        rounding = NEAREST if self.seed is None else STOCHASTIC
        merge = Merge(tuple(self.loaded.adapters), before, after, self.dtype, rounding, self.seed, __version__)
        return {LEDGER: appended(self.ledger, merge, self.fingerprint).text()}

    def job(self) -> str:
        """The ledger, the adapters after `select` and `rename`, the base's order of axes, and size and time of its files."""
        parts = [adapter_sha256(state) for state in self.loaded.states]
        stats = [(str(path), os.stat(path).st_size, os.stat(path).st_mtime_ns) for path in self.base.files()]
        facts = [self.strings(BLANK, BLANK), parts, self.base.order, sorted(self.base.input_first), stats]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


@dataclass
class _Keeping:
    """The residual, if one is kept."""

    base: Checkpoint
    registry: Registry
    names: Sequence[str]
    path: Path | None
    level: int
    size: int = 0

    def keep(self, made: Path) -> None:
        """Write it, when the result is there but has not its name yet."""
        if self.path is None:
            return
        with Checkpoint(made, self.registry.stores, self.base.order) as result:
            ledger = read_ledger({path: strings for path, (_, strings) in result.files().items()})
            assert ledger is not None
            self.size = write_residual(self.path, Source(self.base), Source(result), self.names, ledger.merges[-1], self.level)


def _check(
    out: Path, dtype: str | None, weights: Sequence[float], given: Sequence[Given], residual: str | Path | None, force: bool
) -> None:
    """Raises ConfigError for an unknown dtype and weights that make no sense, StoreError for a residual that is there already."""
    if dtype not in (None, *DTYPES):
        raise ConfigError(f"dtype must be one of {', '.join(DTYPES)}, found {dtype!r}.")
    if len(weights) != len(given):
        raise ConfigError(f"each adapter needs a weight: there are {len(given)} adapters and {len(weights)} weights")
    if wrong := [weight for weight in weights if not math.isfinite(weight)]:
        raise ConfigError(f"a weight must be a finite number, found {wrong[0]}")
    if residual is not None and Path(residual).resolve() == out.resolve():
        raise ConfigError(f"the residual and the result cannot both be '{out}'; give the residual another name")
    if residual is not None and not Path(residual).absolute().parent.is_dir():
        raise StoreError(f"cannot write '{residual}': there is no folder '{Path(residual).parent}': make it first")
    if residual is not None and Path(residual).exists() and not force:
        raise StoreError(f"'{residual}' is there already and was left as it is; pass force=True (--force) to replace it.")


def _room(planned: Merged, job: Job) -> list[str]:
    """Whether there is room where the result is to be."""
    folder = planned.path.absolute().parent
    if not folder.is_dir():
        return [f"there is no folder '{folder}': make it first"]
    free = shutil.disk_usage(folder).free
    needed = job.room()
    return [f"it takes {needed:,} bytes, and {free:,} are free in '{folder}': make room"] if free < needed else []


def _ledger(base: Checkpoint, new: bool) -> Ledger | None:
    """The base's ledger, unless a new one is to be begun."""
    files = {path: strings for path, (_, strings) in base.files().items()}
    if new:
        if not any(LEDGER in strings for strings in files.values()):
            raise ConfigError(f"'{base.path}' has no ledger of merges that could be left out; leave out new_ledger (--new-ledger)")
        return None
    return read_ledger(files)


def _misfit(out: Path, base: str | Path, found: Sequence[str]) -> FormatError:
    return FormatError(faults(f"Nothing was written to '{out}': the adapters do not fit the base '{base}':", found))


def _notes(target: Target, job: Job) -> list[str]:
    notes = []
    if count := job.widened():
        notes.append(f"{count} arrays in bfloat16 became float32: {target.store.name} has no bfloat16")
    if target.copied:
        notes.append(f"copied along: {', '.join(path.name for path in target.copied)}")
    if target.left:
        notes.append(f"left out: {', '.join(target.left)}")
    return notes
