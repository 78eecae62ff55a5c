"""`unmerge`: the bits of a checkpoint before adapters were merged into it, from the base or from kept residuals, checked by its ledger."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import ConfigError, FormatError, LoratkError, StateError, choices, faults
from ..exchange import Checkpoint
from ..plugins import Registry, default_registry
from .checksums import whole
from .files import Source
from .items import Item
from .ledger import BLANK, LEDGER, Ledger, MergedAdapter, read_ledger
from .restoring import Chain, open_chain
from .targets import check_free, choose_target
from .workers import run
from .writing import Order, write


@dataclass(frozen=True)
class Unmerged:
    """What was restored, or in a dry run would be.

    adapters: those that were taken out, in the order in which they were merged. left: those that are still in it. arrays: how many there
    are. checksum: of all arrays, which is what the ledger says; "" in a dry run with residuals, which restores nothing to sum up.
    """

    path: Path
    merged: Path
    adapters: list[MergedAdapter]
    left: list[MergedAdapter]
    arrays: int
    checksum: str
    written: bool
    notes: list[str] = field(default_factory=list)


def unmerge(
    merged: str | Path,
    out: str | Path,
    *,
    base: str | Path | None = None,
    residuals: Sequence[str | Path] = (),
    adapter: str | None = None,
    to: str | None = None,
    force: bool = False,
    resume: bool = True,
    dry_run: bool = False,
    registry: Registry | None = None,
    progress: Callable[[str, int], None] = lambda name, count: None,
) -> Unmerged:
    """Write a merged checkpoint as it was before, bit for bit.

    base: the checkpoint that was merged into; its arrays are taken, once their checksum is that of a merge in the ledger. residuals: the
    files that `merge` kept, of the last merge and as many before it as are to be undone, in any order. adapter: take out just this one,
    which can be done if it was merged last and alone. What is restored is compared with the ledger's checksum before it gets its name, so a
    base that is another one, or a merged file that was changed, is a FormatError and nothing is written. Raises StateError where there is
    nothing to undo, or not in this order; ConfigError, StoreError.
    """
    registry, out = registry or default_registry(), Path(out)
    if (base is None) == (not residuals):
        raise ConfigError("to undo a merge takes either the base (base=, --base) or the residuals that were kept (residuals=, --residual)")
    with ExitStack() as stack:
        opened = stack.enter_context(Checkpoint(merged, registry.stores))
        ledger = _ledger(opened)
        if base is not None:
            origin = stack.enter_context(Checkpoint(base, registry.stores))
            undo: _Undo = _FromBase(origin, ledger, adapter)
        else:
            undo = _FromResiduals(opened, ledger, adapter, open_chain(opened, ledger, [Path(path) for path in residuals], stack))
        target = choose_target(out, undo.origin, registry.stores, to)
        check_free(target, undo.origin, force)
        items = undo.items()
        if wide := [item.name for item in items if item.dtype == "BF16"] if not target.safetensors else []:
            raise ConfigError(
                f"of the stores only safetensors has bfloat16, which {len(wide)} arrays were, and '{out}' is another; name it so"
            )
        if dry_run:
            checksum = undo.rehearsed()
        else:
            order = Order(
                target, Source(undo.origin), items, undo.strings, _explain, _refused, job=undo.job(), resume=resume, progress=progress
            )
            checksum = write(order).after
        count, notes = undo.count, [f"left out: {', '.join(target.left)}"] if target.left else []
        taken, left = ([a for merge in part for a in merge.adapters] for part in (ledger.merges[count:], ledger.merges[:count]))
        return Unmerged(out, Path(merged), taken, left, len(items), checksum, not dry_run, notes)


class _Undo:
    """A way to restore: what the arrays come from, what each becomes, and how many of the ledger's merges are left then."""

    def __init__(self, origin: Checkpoint, ledger: Ledger, adapter: str | None) -> None:
        self.origin, self.ledger, self.adapter = origin, ledger, adapter
        self.count, self.found = 0, ""

    def items(self) -> list[Item]:
        """Every array of the result."""
        return [Item(name, dtype) for name, (dtype, _) in Source(self.origin).infos.items()]

    def job(self) -> str:
        """What the result depends on."""
        return json.dumps([self.ledger.text(), [(str(path), os.stat(path).st_mtime_ns) for path in self.origin.files()]])

    def strings(self, before: str, after: str) -> dict[str, str]:
        """What the files of the result say of merges, once the checksums are right. Raises FormatError where they are not."""
        raise NotImplementedError

    def rehearsed(self) -> str:
        """The checksum of what would be restored, without writing it; "" where that cannot be had."""
        return ""

    def _text(self, count: int) -> dict[str, str]:
        left = self.ledger.until(count)
        return {} if left is None else {LEDGER: left.text()}


class _FromBase(_Undo):
    """The base's own arrays, if they are what some merge of the ledger began with."""

    def strings(self, before: str, after: str) -> dict[str, str]:
        """The base's own ledger, if it has one."""
        if before != BLANK:
            self._check(before)
        own = read_ledger({path: strings for path, (_, strings) in self.origin.files().items()})
        return {} if own is None else {LEDGER: own.text()}

    def rehearsed(self) -> str:
        """The checksum of the base."""
        before = whole({done.name: done.before for done in run(self.items(), Source(self.origin), lambda item: lambda at, data: None)})
        self._check(before)
        return before

    def _check(self, found: str) -> None:
        starts = [merge.before for merge in self.ledger.merges]
        if found not in starts:
            raise FormatError(
                f"'{self.origin.path}' is not what was merged into: its arrays have the checksum {found[:12]}..., the ledger has "
                f"{', '.join(start[:12] + '...' for start in starts)}. Nothing was written; give the base that was merged into"
            )
        self.count, self.found = starts.index(found), found
        _check_adapter(self.ledger, self.count, self.adapter)


class _FromResiduals(_Undo):
    """The merged arrays, with what the residuals of the last merges say that made them another."""

    def __init__(self, origin: Checkpoint, ledger: Ledger, adapter: str | None, chain: Chain) -> None:
        super().__init__(origin, ledger, adapter)
        self._chain, self.count = chain, chain.count
        _check_adapter(ledger, self.count, adapter)

    def items(self) -> list[Item]:
        """Arrays that a residual has, or whose dtype was another, are restored; the others copied."""
        return self._chain.items(Source(self.origin).infos)

    def job(self) -> str:
        """With the residuals."""
        return super().job() + json.dumps([(str(path), os.stat(path).st_mtime_ns) for path in self._chain.paths])

    def strings(self, before: str, after: str) -> dict[str, str]:
        """The ledger of the merges that are left."""
        last, want = self.ledger.merges[-1], self.ledger.merges[self.count].before
        if before != BLANK and last.after != before:
            raise FormatError(f"'{self.origin.path}' was changed after it was merged, so its bits cannot be restored; get a copy as it was")
        if after not in (BLANK, want):
            raise FormatError(
                f"what the residuals make of '{self.origin.path}' has the checksum {after[:12]}..., not {want[:12]}... as the ledger says: "
                "one of them was changed. Nothing was written; get copies as they were"
            )
        self.found = want
        return self._text(self.count)


def _ledger(merged: Checkpoint) -> Ledger:
    ledger = read_ledger({path: strings for path, (_, strings) in merged.files().items()})
    if ledger is None:
        raise StateError(
            f"'{merged.path}' has no ledger of merges ({LEDGER}): loratk merged nothing into it, or another program wrote it anew"
        )
    return ledger


def _check_adapter(ledger: Ledger, count: int, adapter: str | None) -> None:
    """Raises StateError if other adapters than the one asked for are taken out, ConfigError if none of its name was merged."""
    if adapter is None:
        return
    names = [[a.name for a in merge.adapters] for merge in ledger.merges]
    if not any(adapter in merged for merged in names):
        raise ConfigError(f"no adapter {adapter!r} was merged; the ledger has {choices(name for merged in names for name in merged)}")
    taken = [name for merged in names[count:] for name in merged]
    if taken != [adapter]:
        told = "Undo all of it, and merge again what is to stay. The ledger:"
        lines = [f"merge {number}: {', '.join(merged)}" for number, merged in enumerate(names, 1)]
        raise StateError(faults(f"{adapter!r} cannot be taken out alone: that would undo {choices(taken)}. {told}", lines))


def _explain(name: str) -> list[str]:
    return [f"{name!r} cannot be restored"]


def _refused(lines: Sequence[str]) -> LoratkError:
    return FormatError(faults("Nothing was written:", lines))
