"""Items worked on by several threads, with a bounded number of pieces under way."""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from ..kernels.runtime import get_num_threads
from .files import Source
from .items import Done, Item, Sink, Work

Piece = tuple[Work, int, int]


def run(
    items: Sequence[Item], source: Source, sink: Callable[[Item], Sink], progress: Callable[[Item], None] = lambda item: None
) -> Iterator[Done]:
    """Work on all items, and yield each when it is done. `progress` is told each before it begins.

    As many items as there are threads are under way, their pieces by turns: items that are neighbours should lie in different files, as
    writers of one file wait for each other in the system. The results do not depend on the number of threads. An error, or an interrupt of
    who takes the results, stops all threads first.
    """
    stopping, threads = threading.Event(), get_num_threads()

    def begun(item: Item) -> Iterator[Piece]:
        progress(item)
        work = Work(item, source, sink(item), stopping.is_set)
        return ((work, start, stop) for start, stop in work.pieces())

    def pieces() -> Iterator[Piece]:
        waiting, under_way = iter(items), deque[Iterator[Piece]]()
        while True:
            under_way.extend(map(begun, itertools.islice(waiting, threads - len(under_way))))
            if not under_way:
                return
            if (piece := next(under_way[0], None)) is None:
                under_way.popleft()
                continue
            under_way.rotate(-1)
            yield piece

    if threads == 1 or (len(items) == 1 and len(Work(items[0], source, lambda at, data: None).pieces()) == 1):
        yield from (work.done() for work, start, stop in pieces() if work.run(start, stop))
        return
    queue, running = pieces(), dict[Future[bool], Work]()
    with ThreadPoolExecutor(threads, "loratk-merge") as pool:
        try:
            while True:
                for work, start, stop in itertools.islice(queue, 2 * threads - len(running)):
                    running[pool.submit(work.run, start, stop)] = work
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    work = running.pop(future)
                    if future.result():
                        yield work.done()
        except BaseException:
            stopping.set()
            raise
