"""Ctrl-C at a safe point: the running step is finished first, so that what is left behind is a place to resume from."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any


class Interrupts:
    """While entered, Ctrl-C is noted, and `check` raises it as KeyboardInterrupt; inside `abortable`, a second one raises at once.

    Python delivers Ctrl-C to the main thread only, so in another thread nothing is to be done. A handler that the program
    has put in place of Python's own is left alone.
    """

    def __init__(self) -> None:
        self.asked = False
        self._abortable = False
        self._before: Any = None

    def __enter__(self) -> "Interrupts":
        self.asked = False
        if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            self._before = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
            self._before = None
        if self.asked and kind is None:
            self.check()

    def _note(self, number: int, frame: FrameType | None) -> None:
        again, self.asked = self.asked, True
        if again and self._abortable:
            raise KeyboardInterrupt

    def check(self) -> None:
        """Raise KeyboardInterrupt if it was asked for."""
        if self.asked:
            self.asked = False
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def abortable(self) -> Iterator[None]:
        """A block that may be long and can be cut in the middle, because what it does is not part of the run until it ends."""
        self._abortable = True
        try:
            yield
        finally:
            self._abortable = False
