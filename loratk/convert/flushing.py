"""Written bytes sent to the disk while others are still made, so that forcing the rest at the end takes no time of its own."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from contextlib import suppress

EVERY = 64 << 20
"""Bytes between two rounds."""


class Flusher:
    """A thread that forces files to the disk each time so many bytes were written to them. Errors show at the end, when all is forced."""

    def __init__(self, handles: Sequence[int]) -> None:
        self._handles = handles
        self._written = self._asked = 0
        self._wake = threading.Condition()
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="loratk-flush", daemon=True)

    def wrote(self, count: int) -> None:
        """So many bytes more were written to one of the files."""
        with self._wake:
            self._written += count
            if self._written - self._asked >= EVERY:
                self._wake.notify()

    def _run(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._ended or self._written - self._asked >= EVERY)
                if self._ended:
                    return
                self._asked = self._written
            for handle in self._handles:
                with suppress(OSError):
                    getattr(os, "fdatasync", os.fsync)(handle)

    def __enter__(self) -> Flusher:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        with self._wake:
            self._ended = True
            self._wake.notify()
        self._thread.join()
