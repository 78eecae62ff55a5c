"""Items worked on by several threads, with a bounded number of pieces under way."""

from __future__ import annotations

import itertools
import threading
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

    The results do not depend on the number of threads. An error, or an interrupt of who takes the results, stops all threads first.
    """
    stopping = threading.Event()

    def pieces() -> Iterator[Piece]:
        for item in items:
            progress(item)
            work = Work(item, source, sink(item), stopping.is_set)
            yield from ((work, start, stop) for start, stop in work.pieces())

    threads = get_num_threads()
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
