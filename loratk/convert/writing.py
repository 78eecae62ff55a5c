"""A checkpoint written array by array, by several threads, to be gone on with after an interruption.

Into safetensors in place. Other stores write one array after the other, and their ledger first: for them what is made anew goes into a file
of its own, from which it is streamed when all of it is there. Nothing is under the final name before everything is on the disk.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ConfigError, DtypeError, LoratkError, StoreError, faults
from ..io import LazyArrays
from ..io.names import dtype_fault
from ..io.safetensors_header import LIMIT, METADATA, Entry, build_header, size_of
from .checksums import ArrayChecksum, whole
from .files import Source, raw, read_at, stored_dtype, write_at
from .flushing import Flusher
from .items import STEP, Done, Item, Sink
from .ledger import BLANK
from .partial import Partial, partial, publish
from .targets import Shard, Target
from .workers import run

DATA, ANEW = "data", "anew"
Seal = Callable[[str, str], Mapping[str, str]]
"""Given the checksums of all arrays before and after, the strings that each file gets besides its own; of one length for all checksums."""


@dataclass
class Order:
    """What is to be written.

    items: every array. seal: as `Seal`; it may raise, and nothing is written then. explain: what is wrong with an array of which numbers
    are not finite. refused: the error for such lines. job: what the result depends on besides the files read. finish: called with the
    result before it gets its name. progress: told each array before it is made, and their count.
    """

    target: Target
    source: Source
    items: Sequence[Item]
    seal: Seal
    explain: Callable[[str], Sequence[str]]
    refused: Callable[[Sequence[str]], LoratkError]
    job: str
    resume: bool = True
    finish: Callable[[Path], None] = lambda made: None
    progress: Callable[[str, int], None] = lambda name, count: None


@dataclass
class Written:
    """Each array's result, the checksums of all before and after, and how many were there from before."""

    arrays: dict[str, Done] = field(default_factory=dict)
    before: str = ""
    after: str = ""
    resumed: int = 0


def write(order: Order) -> Written:
    """Write a checkpoint. Raises StoreError for what the system refuses, ConfigError for names, and what `refused` and `seal` raise."""
    with partial(order.target.path, _key(order), resume=order.resume) as made:
        written = _in_place(order, made) if order.target.safetensors else _by_store(order, made)
        order.finish(made.folder if order.target.folder else made.folder / DATA)
        made.close()
        publish(made.folder if order.target.folder else made.folder / DATA, order.target.path)
    return written


def _key(order: Order) -> str:
    """What tells one job from others."""
    return json.dumps([order.job, [[item.name, item.dtype] for item in order.items]])


@dataclass(frozen=True, eq=False)
class _File:
    """A safetensors file that is being written."""

    path: Path
    handle: int
    shard: Shard
    start: int
    entries: Mapping[str, Entry]
    layout: Mapping[str, tuple[str, tuple[int, ...]]]


def _in_place(order: Order, made: Partial) -> Written:
    with ExitStack() as stack:
        files = [_opened(order, shard, made, stack, order.seal(BLANK, BLANK)) for shard in order.target.shards]
        with Flusher([file.handle for file in files]) as flusher:
            written = _made(order, made, files, 0, flusher.wrote)
        for file in files:
            header, _ = build_header(file.layout, {**file.shard.strings, **order.seal(written.before, written.after)})
            write_at(file.handle, header, 0)
            os.fsync(file.handle)
    _beside(order.target, made.folder, sum(size_of(*info) for file in files for info in file.layout.values()))
    return written


def _by_store(order: Order, made: Partial) -> Written:
    infos = {item.name: (order.source.infos[item.name][1], stored_dtype(item.dtype)) for item in order.items}
    if wrong := [f"{name!r} {fault}" for name, (_, dtype) in infos.items() if (fault := dtype_fault(dtype))]:
        raise DtypeError(faults(f"'{order.target.path}' cannot hold these arrays:", wrong))
    anew = Shard(ANEW, tuple(item.name for item in order.items if not item.copied), {})
    with ExitStack() as stack:
        file = _opened(order, anew, made, stack, {})
        written = _made(order, made, [file], len(infos))

        def take(name: str) -> np.ndarray:
            order.progress(name, len(infos) + len(written.arrays) - written.resumed)
            if name not in file.entries:
                return order.source.stored(name)
            shape, dtype = infos[name]
            array = np.empty(shape, dtype.newbyteorder("<"))
            read_at(file.handle, raw(array), file.start + file.entries[name].begin, file.path)
            return array.astype(dtype, copy=False)

        strings = {**order.target.shards[0].strings, **order.seal(written.before, written.after)}
        order.target.store.write(made.folder / DATA, LazyArrays(infos, take), strings)
    return written


def _made(order: Order, made: Partial, files: Sequence[_File], more: int, wrote: Callable[[int], None] = lambda count: None) -> Written:
    """Make all arrays that are not finished: those that have a place in some file there, the others only to have their checksums.

    `more` steps come after these. Raises what `refused` makes of numbers that are not finite.
    """
    homes = {name: file for file in files for name in file.entries}
    made.drop([name for name, done in made.finished.items() if name in homes and not _intact(homes[name], done)])
    written = Written(dict(made.finished), resumed=len(made.finished))

    def sink(item: Item) -> Sink:
        if (file := homes.get(item.name)) is None:
            return lambda at, data: None
        place = file.start + file.entries[item.name].begin

        def write_piece(at: int, data: Any) -> None:
            write_at(file.handle, data, place + at)
            wrote(len(data))

        return write_piece

    left = _by_turns([item for item in order.items if item.name not in written.arrays], homes)
    for done in run(left, order.source, sink, lambda item: order.progress(item.name, len(left) + more)):
        written.arrays[done.name] = done
        made.add(done)
    if found := [line for done in written.arrays.values() if done.bad for line in order.explain(done.name)]:
        raise order.refused(found)
    written.before = whole({name: done.before for name, done in written.arrays.items()})
    written.after = whole({name: done.after for name, done in written.arrays.items()})
    return written


def _by_turns(items: Sequence[Item], homes: Mapping[str, _File]) -> list[Item]:
    """The items so that neighbours lie in different files, as `run` likes it."""
    files: dict[_File | None, list[Item]] = {}
    for item in items:
        files.setdefault(homes.get(item.name), []).append(item)
    return [item for turn in itertools.zip_longest(*files.values()) for item in turn if item is not None]


def _opened(order: Order, shard: Shard, made: Partial, stack: ExitStack, sealed: Mapping[str, str]) -> _File:
    """A file of the right size, with a header in which checksums are blank."""
    dtypes = {item.name: item.dtype for item in order.items}
    layout = {name: (dtypes[name], order.source.infos[name][1]) for name in shard.arrays}
    if METADATA in layout:
        raise ConfigError(f"{METADATA!r} cannot be the name of an array in safetensors; rename it")
    header, entries = build_header(layout, {**shard.strings, **sealed})
    if len(header) - 8 > LIMIT:
        raise ConfigError(f"the names of {len(layout)} arrays make a header of {len(header)} bytes, above {LIMIT}; use fewer")
    path = made.folder / (shard.name or DATA)
    handle = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
    stack.callback(os.close, handle)
    size = len(header) + max((entry.end for entry in entries.values()), default=0)
    if os.fstat(handle).st_size != size:
        made.drop([name for name in made.finished if name in layout])
        os.ftruncate(handle, 0)
        _reserve(handle, size, order.target.path)
    write_at(handle, header, 0)
    return _File(path, handle, shard, len(header), entries, layout)


def _reserve(handle: int, size: int, out: Path) -> None:
    """Take the room on the disk now, so that a full one shows at once and not at the end."""
    try:
        if hasattr(os, "posix_fallocate") and size:
            os.posix_fallocate(handle, 0, size)
        else:
            os.ftruncate(handle, size)
    except OSError as error:
        free = shutil.disk_usage(out.parent).free
        raise StoreError(
            f"cannot write '{out}': {error.strerror or error}; it takes {size:,} bytes, and {free:,} are free there: make room"
        ) from error  # fmt: skip


def _intact(file: _File, done: Done) -> bool:
    """Whether an array that the journal calls finished has its checksum."""
    entry = file.entries[done.name]
    found, buffer = ArrayChecksum(entry.dtype, entry.shape, entry.end - entry.begin), bytearray(min(STEP, entry.end - entry.begin))
    for at in range(0, entry.end - entry.begin, STEP):
        piece = memoryview(buffer)[: min(STEP, entry.end - entry.begin - at)]
        read_at(file.handle, piece, file.start + entry.begin + at, file.path)
        found.add(at, piece)
    return found.hex() == done.after


def _beside(target: Target, folder: Path, size: int) -> None:
    """The index of a folder, and what comes along with the weights."""
    if target.index is not None:
        name, index = target.index
        where = {array: shard.name for shard in target.shards for array in shard.arrays}
        index = {**index, "metadata": {**(index.get("metadata") or {}), "total_size": size}, "weight_map": dict(sorted(where.items()))}
        (folder / name).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    for path in target.copied:
        shutil.copyfile(path, folder / path.name)
