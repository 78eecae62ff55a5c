"""`python -m tests.fuzz [--inputs 100000] [--only FORMAT] [--seed 0] [--keep FOLDER]`: every registered format, read by a mutation fuzz."""

import argparse
import sys
import tempfile
from pathlib import Path

from loratk.exchange import formats_of
from loratk.plugins import default_registry

from .run import fuzz


def main() -> int:
    """One line for each format, then what went wrong; 1 if anything did."""
    known = list(formats_of(default_registry()))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=known, action="append")
    parser.add_argument("--keep", type=Path, help="folder for inputs that made trouble; the default is a temporary one")
    given = parser.parse_args()
    folder = given.keep or Path(tempfile.mkdtemp(prefix="loratk-fuzz-"))
    folder.mkdir(exist_ok=True)
    bad = 0
    for name in given.only or known:
        result = fuzz([name], given.inputs, folder, given.seed)[name]
        count = result.count
        if count:
            rate = count["inputs"] / max(count["seconds"], 1e-9)
            print(
                f"{name}: {given.inputs} inputs from {count['seeds']} seeds, {rate:.0f}/s; {count['read']} read, "
                f"{count['ways']} ways seen; {len(result.problems)} problems",
                flush=True,
            )
        for problem in result.problems[:20]:
            print(f"{name}, {problem}", flush=True)
        bad += len(result.problems)
    print(f"inputs that made trouble are in {folder}/kept" if bad else "no crash, hang or error but loratk's own")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
