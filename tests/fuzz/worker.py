"""The process that reads the inputs: `python -m tests.fuzz.worker FOLDER SEED INPUTS FROM_TARGET FROM_INPUT [TARGET ...]`.

It may crash, hang or be killed: the input it was at lies in FOLDER/input, its place in FOLDER/place, and findings in FOLDER/findings.
"""

import faulthandler
import itertools
import json
import re
import resource
import shutil
import struct
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path

import numpy as np

from loratk.errors import LoratkError
from loratk.exchange import detect_format, formats_of, load_adapter
from loratk.plugins import default_registry
from tests.asked import TO_READ

from .mutate import Mutator
from .seeds import Case, cases
from .structures import change

MEMORY = 1 << 30
"""Bytes that reading a file of some kilobytes may take: twice the 256 MiB that an archive may declare, and room for copies."""
ADDRESSES = 6 << 30
"""Bytes that may be asked for and left untouched, as HDF5 does over a wrong length before it finds out."""
CPU_SECONDS = 5.0
PLACE = struct.Struct("<II")
WATCHED = (
    "subprocess.",
    "os.system",
    "os.exec",
    "os.spawn",
    "os.posix_spawn",
    "os.remove",
    "os.rename",
    "os.mkdir",
    "socket.",
    "shutil.",
    "ctypes.",
)


class Watch:
    """What Python does while an input is read: files opened elsewhere, imports, processes, pickled names looked up."""

    def __init__(self, inside: Path) -> None:
        self.inside, self.active = str(inside), False
        self.mark = str(inside.parent / ".loratk-commit")  # where a folder of files may be on its way to its place
        self.seen: list[str] = []
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple) -> None:
        if not self.active:
            return
        if event == "open" and isinstance(arguments[0], str | bytes):
            path = arguments[0] if isinstance(arguments[0], str) else arguments[0].decode("utf-8", "replace")
            if path != self.mark and (not path.startswith((self.inside, sys.prefix, sys.base_prefix)) or ".." in path):
                self.seen.append(f"opened {path!r}")
        elif event == "import" and arguments[0].partition(".")[0] not in _MODULES:
            self.seen.append(f"imported {arguments[0]!r}")
        elif event == "pickle.find_class" or event.startswith(WATCHED):
            self.seen.append(f"{event} {arguments!r:.200}")


_MODULES = {*sys.stdlib_module_names, "numpy", "h5py", "loratk", "loratk_plugins", "encodings"}


class Target:
    """A format, its seeds, and the inputs that were refused, or read, in a way not seen before: they are changed further."""

    def __init__(self, name: str, folder: Path, registry) -> None:
        self.registry, self.name = registry, name
        self.format = formats_of(registry)[name]
        made = folder / "seeds"
        made.mkdir(exist_ok=True)
        self.seeds = cases(self.format, made, registry)
        self.corpus = list(self.seeds)
        shutil.rmtree(made)
        self.first = itertools.cycle([self.format.detect, self.format.adapters])
        self.seen: set[str] = set()
        self.read = 0
        if not self.corpus:
            raise SystemExit(f"the format {name!r} has no seed: add a sample that it can write, or a file to tests/data")

    def input(self, m: Mutator) -> Case:
        """Another input."""
        case, other = dict(m.pick(self.seeds if m.chance(0.5) else self.corpus)), m.pick(self.corpus)
        key = m.pick(list(case))
        if len(case) > 1 and m.chance(0.05):
            del case[key]
        elif m.chance(0.03):
            case[key] = m.pick(list(other.values()))
        else:
            case[key] = change(m, case[key], m.pick(list(other.values())))
        return case

    def outcome(self, path: Path) -> str:
        """Read an input. LoratkError is as it should be, and told by its text without names and numbers; all else passes."""
        with suppress(LoratkError):
            next(self.first)(path)
        try:
            load_adapter(path, format=self.name, options=TO_READ.get(self.name), registry=self.registry)
        except LoratkError as error:
            if (hidden := _of_memory(error)) is not None:
                raise MemoryError(f"within {type(error).__name__}") from hidden
            return re.sub(r"'[^']*'|\"[^\"]*\"|[\d.e+-]+|\\x..|b'.*", "#", str(error))[:300]
        self.read += 1
        return "read"


def _of_memory(error: BaseException | None) -> BaseException | None:
    while error is not None:
        if isinstance(error, MemoryError):
            return error
        error = error.__cause__ or error.__context__
    return None


def put(case: Case, path: Path) -> None:
    """Write an input where the reader finds it, in place of the one before."""
    if path.is_dir():
        shutil.rmtree(path)
    if "" in case:
        path.write_bytes(case[""])
        return
    path.unlink(missing_ok=True)
    for name, data in case.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)


def main() -> None:
    faulthandler.enable()
    folder, seed, inputs, first, start = Path(sys.argv[1]).resolve(), *map(int, sys.argv[2:6])
    registry, path = default_registry(), folder / "input"
    watch = Watch(folder)
    with (folder / "place").open("r+b") as place, (folder / "findings").open("a") as findings:
        for index, name in list(enumerate(sys.argv[6:]))[first:]:
            if path.is_dir():
                shutil.rmtree(path)
            path.unlink(missing_ok=True)
            target = Target(name, folder, registry)
            _run(target, watch, path, place, findings, seed, index, range(start, inputs), registry)
            start = 0
    (folder / "done").touch()


def _run(target, watch, path, place, findings, seed, index, numbers, registry) -> None:
    for case in target.corpus:
        put(case, path)
        target.seen.add(target.outcome(path))
    begun, before, sizes = time.time(), _peak(), Path("/proc/self/statm")
    if sizes.exists():
        limit = int(sizes.read_text().split()[0]) * resource.getpagesize() + ADDRESSES
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))
    sound, target.read = target.read, 0
    for number in numbers:
        m = Mutator(np.random.default_rng([seed, index, number]))
        case = target.input(m)
        place.seek(0)
        place.write(PLACE.pack(index, number))
        place.flush()
        put(case, path)
        used, watch.active = time.process_time(), True
        problem, outcome = "", ""
        try:
            outcome = target.outcome(path)
            if number % 50 == 0:
                detect_format(path, registry=registry)
        except LoratkError:
            pass
        except BaseException:
            watch.active = False
            problem = traceback.format_exc()
        finally:
            watch.active = False
        used = time.process_time() - used
        if watch.seen:
            problem += "\n".join(watch.seen)
            watch.seen.clear()
        if used > CPU_SECONDS:
            problem += f"took {used:.1f} s"
        peak = _peak()
        if peak > before + MEMORY:
            problem, before = f"{problem}took {peak - before} bytes", peak
        if problem:
            print(json.dumps({"target": target.name, "input": number, "problem": problem}), file=findings, flush=True)
            _keep(path, target.name, number)
        elif outcome not in target.seen and len(target.seen) < 3000:
            target.seen.add(outcome)
            if sum(map(len, case.values())) < 1 << 17:
                target.corpus.append(case)
    line = {"target": target.name, "inputs": len(numbers), "seconds": time.time() - begun, "seeds": len(target.seeds), "seeds_read": sound}
    print(json.dumps(line | {"ways": len(target.seen), "read": target.read}), file=findings, flush=True)


def _peak() -> int:
    """The most bytes of memory the process has had. The system's own count starts with what the process had that started this one."""
    status = Path("/proc/self/status")
    if status.exists():
        return next(int(line.split()[1]) << 10 for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def _keep(path: Path, name: str, number: int) -> None:
    kept = path.with_name("kept") / f"{name}-{number}"
    kept.parent.mkdir(exist_ok=True)
    if path.is_dir():
        shutil.copytree(path, kept, dirs_exist_ok=True)
    elif path.exists():
        shutil.copy(path, kept)


if __name__ == "__main__":
    main()
