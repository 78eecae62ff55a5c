"""What the calling thread has switched: recording of graphs, and the search for non-finite values."""

import contextlib
import threading
from collections.abc import Iterator


class _Modes(threading.local):
    recording = True
    anomaly = False


modes = _Modes()


@contextlib.contextmanager
def no_grad() -> Iterator[None]:
    """Record nothing inside the block (this thread only): results need no gradient and keep no operand alive."""
    before, modes.recording = modes.recording, False
    try:
        yield
    finally:
        modes.recording = before


@contextlib.contextmanager
def detect_anomaly() -> Iterator[None]:
    """Check every result and every gradient inside the block (this thread only); slow.

    The first that holds a NaN or an infinity raises AnomalyError, which names the op.
    """
    before, modes.anomaly = modes.anomaly, True
    try:
        yield
    finally:
        modes.anomaly = before
