"""Many passes at a time, or one change: so that no forward pass sees half of a change that another thread makes."""

import threading
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

from ..errors import StateError

Method = TypeVar("Method", bound=Callable[..., Any])


class Gate:
    """A pass goes through as `with gate:`; a change as `with gate.alone:`, which waits for running passes, and new ones for it.

    A pass within a pass, and a pass or a change within a change, go through at once. A change within a pass could never begin: StateError.
    """

    def __init__(self) -> None:
        self._free = threading.Condition(threading.Lock())
        self._passes, self._waiting = 0, 0
        self._changing = False
        self._mine = threading.local()
        self.alone = _Alone(self)

    def __reduce__(self) -> tuple[Any, ...]:  # copies and pickles have a gate of their own
        return Gate, ()

    def __enter__(self) -> None:
        mine = self._mine
        depth = getattr(mine, "depth", 0)
        if not depth and not getattr(mine, "changes", 0):
            with self._free:
                while self._changing or self._waiting:
                    self._free.wait()
                self._passes += 1
        mine.depth = depth + 1

    def __exit__(self, *error: object) -> None:
        mine = self._mine
        mine.depth -= 1
        if not mine.depth and not getattr(mine, "changes", 0):
            with self._free:
                self._passes -= 1
                if not self._passes:
                    self._free.notify_all()

    def _begin(self) -> None:
        mine = self._mine
        changes = getattr(mine, "changes", 0)
        if not changes:
            if getattr(mine, "depth", 0):
                raise StateError("A model cannot be changed from within its own forward pass; do it after the call.")
            with self._free:
                self._waiting += 1
                try:
                    while self._changing or self._passes:
                        self._free.wait()
                    self._changing = True
                finally:
                    self._waiting -= 1
                    self._free.notify_all()
        mine.changes = changes + 1

    def _end(self) -> None:
        self._mine.changes -= 1
        if not self._mine.changes:
            with self._free:
                self._changing = False
                self._free.notify_all()


class _Alone:
    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    def __enter__(self) -> None:
        self._gate._begin()

    def __exit__(self, *error: object) -> None:
        self._gate._end()


def alone(method: Method) -> Method:
    """A method of an object with a `_gate` that changes what passes see: none runs meanwhile."""

    @wraps(method)
    def changing(self: Any, *args: Any, **kwargs: Any) -> Any:
        with self._gate.alone:
            return method(self, *args, **kwargs)

    return changing  # type: ignore[return-value]
