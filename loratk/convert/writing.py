"""A checkpoint written array by array: into safetensors in place, by several threads, to be gone on with; into other stores as a stream.

Nothing is under the final name before everything is on the disk.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from .files import Source, read_at, stored_dtype, write_at
from .flushing import Flusher
from .items import STEP, Done, Item, Sink
from .ledger import BLANK
from .partial import Partial, partial, publish
from .targets import Shard, Target
from .workers import run

DATA = "data"
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
    """Each array's result, the checksums of all before and after ("" where it is not kept), and how many were there from before."""

    arrays: dict[str, Done] = field(default_factory=dict)
    before: str = ""
    after: str = ""
    resumed: int = 0


def write(order: Order) -> Written:
    """Write a checkpoint. Raises StoreError for what the system refuses, ConfigError for names, and what `refused` and `seal` raise."""
    with partial(order.target.path, _key(order), resume=order.resume and order.target.safetensors) as made:
        written = _in_place(order, made) if order.target.safetensors else _as_stream(order, made)
        order.finish(made.folder if order.target.folder else made.folder / DATA)
        made.close()
        publish(made.folder if order.target.folder else made.folder / DATA, order.target.path)
    return written


def _key(order: Order) -> str:
    """What tells one job from others."""
    return json.dumps([order.job, [[item.name, item.dtype] for item in order.items]])


@dataclass(frozen=True)
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
        files = [_opened(order, shard, made, stack) for shard in order.target.shards]
        homes = {name: file for file in files for name in file.entries}
        made.drop([name for name, done in made.finished.items() if not _intact(homes[name], done)])
        written = Written(dict(made.finished), resumed=len(made.finished))
        flusher = stack.enter_context(Flusher([file.handle for file in files]))

        def sink(item: Item) -> Sink:
            file = homes[item.name]
            place = file.start + file.entries[item.name].begin

            def write_piece(at: int, data: Any) -> None:
                write_at(file.handle, data, place + at)
                flusher.wrote(len(data))

            return write_piece

        left = _by_turns([item for item in order.items if item.name not in written.arrays], homes)
        for done in run(left, order.source, sink, lambda item: order.progress(item.name, len(left))):
            written.arrays[done.name] = done
            made.add(done)
        _refuse_bad(order, written.arrays.values())
        written.before = whole({name: done.before for name, done in written.arrays.items()})
        written.after = whole({name: done.after for name, done in written.arrays.items()})
        for file in files:
            header, _ = build_header(file.layout, {**file.shard.strings, **order.seal(written.before, written.after)})
            write_at(file.handle, header, 0)
            os.fsync(file.handle)
    _beside(order.target, made.folder, sum(size_of(*info) for file in files for info in file.layout.values()))
    return written


def _by_turns(items: Sequence[Item], homes: Mapping[str, _File]) -> list[Item]:
    """The items so that neighbours lie in different files, as `run` likes it."""
    files: dict[int, list[Item]] = {}
    for item in items:
        files.setdefault(homes[item.name].handle, []).append(item)
    return [item for turn in itertools.zip_longest(*files.values()) for item in turn if item is not None]


def _opened(order: Order, shard: Shard, made: Partial, stack: ExitStack) -> _File:
    """A file of the right size, with a header in which checksums are blank."""
    dtypes = {item.name: item.dtype for item in order.items}
    layout = {name: (dtypes[name], order.source.infos[name][1]) for name in shard.arrays}
    if METADATA in layout:
        raise ConfigError(f"{METADATA!r} cannot be the name of an array in safetensors; rename it")
    header, entries = build_header(layout, {**shard.strings, **order.seal(BLANK, BLANK)})
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


def _as_stream(order: Order, made: Partial) -> Written:
    """By a store that writes one array after the other. The ledger comes first there, so the source is summed up before."""
    infos = {item.name: (order.source.infos[item.name][1], stored_dtype(item.dtype)) for item in order.items}
    if wrong := [f"{name!r} {fault}" for name, (_, dtype) in infos.items() if (fault := dtype_fault(dtype))]:
        raise DtypeError(faults(f"'{order.target.path}' cannot hold these arrays:", wrong))
    written = Written()
    copies = [Item(item.name, order.source.infos[item.name][0]) for item in order.items]
    written.before = whole({done.name: done.before for done in run(copies, order.source, lambda item: lambda at, data: None)})
    items = {item.name: item for item in order.items}

    def make(name: str) -> np.ndarray:
        order.progress(name, len(items))
        array = np.empty(infos[name][0], infos[name][1].newbyteorder("<"))
        memory = array.reshape(-1).view(np.uint8)

        def sink(at: int, data: Any) -> None:
            memory[at : at + len(data)] = np.frombuffer(data, np.uint8)

        (written.arrays[name],) = run([items[name]], order.source, lambda item: sink)
        if len(written.arrays) == len(items):
            _refuse_bad(order, written.arrays.values())
        return array.astype(infos[name][1], copy=False)

    path = made.folder / DATA
    order.target.store.write(path, LazyArrays(infos, make), {**order.target.shards[0].strings, **order.seal(written.before, "")})
    order.seal(written.before, whole({name: done.after for name, done in written.arrays.items()}))  # which may be refused
    return written


def _refuse_bad(order: Order, arrays: Iterator[Done] | Any) -> None:
    found = [line for done in arrays if done.bad for line in order.explain(done.name)]
    if found:
        raise order.refused(found)
