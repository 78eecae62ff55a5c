"""python -m benchmarks [--case GLOB] [--peer peft] [--json FILE]: a line a case, and the ratios.

Each way runs in turns with the others in one process and on as many threads as the machine has; figures are medians.
"""

import argparse
import importlib.util
import json
import platform
import sys
from fnmatch import fnmatch
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import loratk

from .cases import CASES, Case
from .timing import interleaved, summary


def versions() -> str:
    found = []
    for package in ("loratk", "numpy", "numba", "torch", "peft"):
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return f"{platform.machine()}, python {platform.python_version()}, " + ", ".join(found)


def run(case: Case, peer: str | None) -> dict[str, object]:
    ways = {"ours": case.ours(), "floor": case.floor()}
    if peer:
        ways["peer"] = case.peft()
    taken = {name: summary(times) for name, times in interleaved(ways, rounds=case.rounds).items()}
    result: dict[str, object] = {"case": case.name, "threads": loratk.get_num_threads(), "peer": peer}
    for name, (middle, spread) in taken.items():
        result |= {f"{name}_ms": middle, f"{name}_spread_ms": spread}
    return result


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="What a training step costs, as ratios in one run.")
    parser.add_argument("--case", default="*", metavar="GLOB", help="only cases whose name matches")
    parser.add_argument("--peer", choices=["peft"], help="a peer to compare with; it must be installed")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results, a list of objects")
    options = parser.parse_args()
    cases = [case for case in CASES if fnmatch(case.name, options.case)]
    if not cases:
        parser.error(f"no case matches {options.case!r}; cases: {', '.join(case.name for case in CASES)}")
    if options.peer and importlib.util.find_spec(options.peer) is None:
        parser.error(f"{options.peer} is not installed here")
    if options.peer:
        import torch

        torch.set_num_threads(loratk.get_num_threads())
    print(f"{versions()}, {loratk.get_num_threads()} threads; medians of interleaved runs, in milliseconds")
    print(f"{'case':36}{'loratk':>10}{'floor':>10}{'x floor':>9}{'peer':>10}{'faster':>9}")
    results = []
    for case in cases:
        result = run(case, options.peer)
        results.append(result)
        ours, floor, peer = (result.get(f"{name}_ms") for name in ("ours", "floor", "peer"))
        beside = f"{peer:10.3f}{peer / ours:8.2f}x" if peer else ""
        print(f"{case.name:36}{ours:10.3f}{floor:10.3f}{ours / floor:8.2f}x{beside}")
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
