"""Processes of their own for what is timed, so that no library's threads stand in the way of another's."""

import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
POOLS = ("LORATK_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


class WorkerError(Exception):
    """What was asked of a worker failed there; the text is its traceback."""


def environment(threads: int, **more: str) -> dict[str, str]:
    """This process's environment with every pool at that many threads."""
    return {**os.environ, **dict.fromkeys(POOLS, str(threads)), **more}


class Remote:
    """A worker in a process of its own: its methods are called with `ask`."""

    def __init__(self, threads: int) -> None:
        command, variables = [sys.executable, "-m", "benchmarks.worker"], environment(threads)
        pipe: Any = subprocess.PIPE
        self._process = subprocess.Popen(command, cwd=ROOT, env=variables, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL)
        self._questions: Any = self._process.stdin
        self._answers: Any = self._process.stdout

    def ask(self, message: str, *arguments: Any) -> Any:
        """The answer of that method. Raises WorkerError."""
        try:
            self._questions.write(pickle.dumps((message, *arguments)))
            self._questions.flush()
            outcome, answer = pickle.load(self._answers)
        except (EOFError, BrokenPipeError):
            raise WorkerError(f"the process ended while asked for {message!r}") from None
        if outcome == "failed":
            raise WorkerError(answer)
        return answer

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()


@contextmanager
def remote(threads: int) -> Iterator[Remote]:
    """A worker for the length of a `with` block."""
    worker = Remote(threads)
    try:
        yield worker
    finally:
        worker.close()
