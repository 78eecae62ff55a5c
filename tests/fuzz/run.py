"""The process that watches: it starts a worker anew after the input that killed it, and kills one that hangs."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from .worker import PLACE

WORKER = ["-m", "tests.fuzz.worker"]
ROOT = Path(__file__).parents[2]
SECONDS = 30.0
"""Time for one input, and for a worker to start."""


@dataclass
class Result:
    """What came of one reader: problems, each with the input kept in a file, and the worker's own count."""

    problems: list[str] = field(default_factory=list)
    count: dict[str, float] = field(default_factory=dict)


def fuzz(targets: list[str], inputs: int, folder: Path, seed: int = 0) -> dict[str, Result]:
    """Let each of these formats read so many inputs. Inputs that made trouble are kept in `folder`/kept."""
    results = {name: Result() for name in targets}
    first = start = 0
    (folder / "findings").write_text("")
    while first < len(targets):
        (folder / "place").write_bytes(PLACE.pack(first, start))
        command = [sys.executable, "-W", "error", *WORKER, str(folder), *map(str, (seed, inputs, first, start)), *targets]
        with (folder / "stderr").open("w+") as stderr:
            worker = subprocess.Popen(command, cwd=ROOT, stderr=stderr, env=os.environ | {"PYTHONPATH": str(ROOT)})
            hung = _watch(worker, folder / "place")
            if worker.returncode == 0:
                break
            stderr.seek(0)
            said = stderr.read()
        first, start = PLACE.unpack((folder / "place").read_bytes())
        how = f"hung for {SECONDS:.0f} s" if hung else f"died with {_name(worker.returncode)}"
        results[targets[first]].problems.append(f"input {start}: {how}\n{said[:4000]}")
        if worker.returncode > 0 or (start == 0 and "no seed" in said):  # the worker itself is at fault
            first, start = first + 1, 0
            continue
        _keep(folder, f"{targets[first]}-{start}")
        start += 1
    for line in _lines(folder / "findings"):
        result = results[line["target"]]
        if "problem" in line:
            result.problems.append(f"input {line['input']}: {line['problem']}")
        else:
            result.count = line
    return results


def _watch(worker: subprocess.Popen, place: Path) -> bool:
    """Wait for the worker's end, or end it where it does not move on; whether it did not."""
    seen, since = b"", time.monotonic()
    while True:
        try:
            worker.wait(0.2)
            return False
        except subprocess.TimeoutExpired:
            now = place.read_bytes()
            if now != seen:
                seen, since = now, time.monotonic()
            elif time.monotonic() - since > SECONDS:
                worker.send_signal(signal.SIGABRT)  # faulthandler then tells where it is
                worker.wait()
                return True


def _lines(path: Path) -> Iterator[dict]:
    for line in path.read_text().splitlines():
        yield json.loads(line)


def _name(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit status {code}"


def _keep(folder: Path, name: str) -> None:
    path, kept = folder / "input", folder / "kept" / name
    kept.parent.mkdir(exist_ok=True)
    if path.is_dir():
        shutil.copytree(path, kept, dirs_exist_ok=True)
    elif path.exists():
        shutil.copy(path, kept)
