"""A pool of threads that run compiled loops side by side.

Compiled loops release Python's global lock, so ordinary threads run them in parallel. A thread sleeps when there has
been nothing to do for two milliseconds; a forked child starts a pool of its own; and when two Python threads launch
at once, the second simply runs its loop alone. `docs/decisions.md` (threads) has the measurements.
"""

import os
import queue
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

MOST = 512  # workers
MAILBOX = 16  # entries of a mailbox, so that no two share a cache line


class Worker:
    """One thread that is handed calls. Between two of them it watches for the next for a moment, then sleeps.

    `_begun` and `_ended` are flags that a waiting thread can watch outside Python's global lock. Who sets a flag also
    wakes the other side, if that has gone to sleep; under the global lock one of the two always sees the other.
    `mail` is the worker's mailbox for work that needs no Python (`spin.py`).
    """

    def __init__(self, name: str, mail: np.ndarray) -> None:
        from .spin import serve, spin  # compiled: not before it is needed

        self._serve, self._watch, self._mail = serve, spin, mail
        self._begun, self._ended = np.zeros(1, np.int64), np.zeros(1, np.int64)
        self._call: Callable[[], object] = bool
        self._running = self._asleep = False
        self._error: BaseException | None = None
        self._done = threading.Lock()
        self._wake: queue.SimpleQueue[None] = queue.SimpleQueue()
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def _run(self) -> None:
        while True:
            if not self._serve(self._begun, self._mail):
                self._asleep = True
                if not self._begun[0]:
                    self._wake.get()
                self._asleep = False
                if not self._begun[0]:  # roused, or woken late for a call that is done
                    continue
            self._begun[0] = 0
            try:
                self._call()
            except BaseException as error:  # handed to the thread that waits
                self._error = error
            done, self._call = self._done, bool  # the call's arrays are let go
            self._running = False
            self._ended[0] = 1
            done.release()

    def start(self, call: Callable[[], object]) -> None:
        """Begin the call; every start needs a `wait`."""
        self._done = threading.Lock()  # a new one a call: an interrupted wait leaves no doubt about its state
        self._done.acquire()
        self._error, self._call, self._running = None, call, True
        self._ended[0] = 0
        self._begun[0] = 1
        if self._asleep:
            self._wake.put(None)

    def rouse(self) -> None:
        """Have it watch for work again, if it sleeps."""
        if self._asleep:
            self._wake.put(None)

    def wait(self) -> None:
        """Return when the call has ended; its error, or an interrupt (Ctrl-C) that came meanwhile, is raised only then."""
        interrupt: BaseException | None = None
        while self._running:
            try:
                if not self._watch(self._ended):
                    self._done.acquire()
            except BaseException as error:
                interrupt = error
        failure, self._error = self._error or interrupt, None
        if failure is not None:
            raise failure


class Pool:
    """Up to as many calls at a time as it is given: on the caller's own thread and on workers, started when first needed."""

    def __init__(self) -> None:
        self._reset()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._reset)

    def _reset(self) -> None:  # threads do not survive a fork
        self._workers: list[Worker] = []
        self._busy = threading.Lock()
        self.mails = np.zeros((MOST, MAILBOX), np.int64)

    def _grow(self, count: int) -> None:
        while len(self._workers) < count:
            self._workers.append(Worker(f"loratk-{len(self._workers) + 1}", self.mails[len(self._workers)]))

    def rouse(self, count: int) -> None:
        """Have that many workers watch their mailboxes, `mails`, very soon."""
        if len(self._workers) < count and self._busy.acquire(blocking=False):
            try:
                self._grow(count)
            finally:
                self._busy.release()
        for worker in self._workers[:count]:
            worker.rouse()

    def run(self, calls: list[Callable[[], Any]]) -> None:
        """Run all calls and return when the last has ended; the first error is raised then."""
        if len(calls) == 1 or not self._busy.acquire(blocking=False):
            for call in calls:
                call()
            return
        waits: list[Callable[[], Any]] = []
        errors: list[BaseException] = []
        try:
            self._grow(len(calls) - 1)
            for worker, call in zip(self._workers, calls[1:], strict=False):
                waits.append(worker.wait)
                worker.start(call)
            calls[0]()
        except BaseException as error:  # every worker must be waited for first
            errors.append(error)
        try:
            for wait in waits:
                try:
                    wait()
                except BaseException as error:
                    errors.append(error)
            if errors:
                raise errors[0]
        finally:
            self._busy.release()
