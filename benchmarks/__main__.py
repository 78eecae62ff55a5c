"""python -m benchmarks [--case GLOB] [--peer peft] [--json FILE] [--plot FILE]: times and their ratios, a line a case."""

import argparse
import importlib.util
import json
import sys
from fnmatch import fnmatch
from pathlib import Path

import loratk

from .cases import CASES, MEMORY, named
from .follows import follows
from .machine import header
from .plot import plot
from .result import HEAD, line
from .runner import Runner

START_UP_NAMES = ["start-up-cold", "start-up-warm"]
MEMORY_NAMES = [f"memory-{name}" for name in MEMORY]


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="What a training step costs, as ratios in one run.")
    parser.add_argument("--case", default="*", metavar="GLOB", help="only cases whose name matches; --list names them")
    parser.add_argument("--list", action="store_true", help="name the cases and stop")
    parser.add_argument("--peer", choices=["peft"], help="a peer to compare with; it must be installed")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the times: a list of objects, one a case")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw time against rows and against rank instead (needs matplotlib)")
    parser.add_argument("--turns", type=int, default=6, metavar="N", help="how many turns each way gets (default 6)")
    chosen = parser.parse_args()
    names = [*(case.name for case in CASES), *MEMORY_NAMES, *START_UP_NAMES]
    chosen.names = [name for name in names if fnmatch(name, chosen.case)]
    if chosen.turns < 1:
        parser.error(f"--turns must be at least 1, found {chosen.turns}")
    if not chosen.names:
        parser.error(f"no case matches {chosen.case!r}; cases: {', '.join(names)}")
    if chosen.peer:
        missing = [package for package in ("torch", "peft") if importlib.util.find_spec(package) is None]
        if missing:
            parser.error(
                f"--peer peft needs {' and '.join(missing)}, not installed here; python -m pip install torch peft, or leave out --peer"
            )
    if chosen.plot and importlib.util.find_spec("matplotlib") is None:
        parser.error("--plot needs matplotlib, not installed here; python -m pip install 'loratk[plot]'")
    return chosen


def main() -> int:
    chosen = options()
    if chosen.list:
        print("\n".join(chosen.names))
        return 0
    threads = loratk.get_num_threads()
    print(header(threads))
    with Runner(peer=chosen.peer, turns=chosen.turns, threads=threads) as runner:
        if chosen.plot:
            plot(chosen.plot, runner.figures)
            return 0
        print(f"medians in milliseconds, each way in a process of its own, in turns\n{HEAD}", flush=True)
        results = []
        for name in chosen.names:
            if name in MEMORY_NAMES:
                print(f"{name}: {runner.memory(named(name.removeprefix('memory-')))}", flush=True)
            elif name not in START_UP_NAMES:
                found, floor_by = runner.run(named(name))
                results.append(found)
                print(line(found, floor_by), flush=True)
        for found in runner.start_up() if set(START_UP_NAMES) & set(chosen.names) else ():
            results.append(found)
            print(line(found), flush=True)
    for text in follows(results):
        print(text)
    if chosen.json:
        chosen.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
