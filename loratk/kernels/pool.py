"""A pool of threads that run compiled loops side by side.

Compiled loops release Python's global lock, so ordinary threads run them in parallel. The threads sleep between
launches, so they take nothing from a BLAS pool; a forked child starts a pool of its own; and when two Python threads
launch at once, the second simply runs its loop alone. `docs/decisions.md` (threads) has the measurements.
"""

import os
import threading
from collections.abc import Callable
from typing import Any


class Worker:
    """One thread, asleep until it is handed a call."""

    def __init__(self, name: str) -> None:
        self._call: Callable[[], object] | None = None
        self._error: BaseException | None = None
        self._wake, self._done = threading.Lock(), threading.Lock()
        self._wake.acquire()
        self._done.acquire()
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def _run(self) -> None:
        while True:
            self._wake.acquire()
            if self._call is None:
                return
            try:
                self._call()
            except BaseException as error:  # handed to the thread that waits
                self._error = error
            self._call = None
            self._done.release()

    def start(self, call: Callable[[], object]) -> None:
        self._call = call
        self._wake.release()

    def wait(self) -> None:
        self._done.acquire()
        error, self._error = self._error, None
        if error is not None:
            raise error

    def stop(self) -> None:
        self._wake.release()


class Pool:
    """Up to `threads` calls at a time: the caller's own thread and `threads - 1` workers, started when first needed."""

    def __init__(self) -> None:
        self._reset()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._reset)

    def _reset(self) -> None:  # threads do not survive a fork
        self._workers: list[Worker] = []
        self._busy = threading.Lock()

    def run(self, calls: list[Callable[[], Any]]) -> None:
        """Run all calls and return when the last has ended; the first error is raised then."""
        if len(calls) == 1 or not self._busy.acquire(blocking=False):
            for call in calls:
                call()
            return
        try:
            while len(self._workers) < len(calls) - 1:
                self._workers.append(Worker(f"loratk-{len(self._workers) + 1}"))
            helpers = self._workers[: len(calls) - 1]
            for worker, call in zip(helpers, calls[1:], strict=True):
                worker.start(call)
            errors: list[BaseException] = []
            for part in (calls[0], *(worker.wait for worker in helpers)):
                try:
                    part()
                except BaseException as error:  # every worker must be waited for first
                    errors.append(error)
            if errors:
                raise errors[0]
        finally:
            self._busy.release()
