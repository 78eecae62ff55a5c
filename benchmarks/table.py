"""python -m benchmarks.table FILE...: the results of `--json` as the table of docs/performance.md."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .follows import follows

HEAD = "| case | threads | loratk | floor | x floor | PEFT | faster |\n| --- | ---: | ---: | ---: | ---: | ---: | ---: |"


def milliseconds(time: float, spread: float) -> str:
    """Three digits that count, and the spread as a share."""
    digits = f"{time:.3g}" if time < 1000 else f"{time:.0f}"
    return f"{digits} ms ±{spread / 2 / time:.0%}"


def row(result: Mapping[str, Any]) -> str:
    """One row of the table."""
    ours, floor, peer, spread = (result[key] for key in ("ours_ms", "floor_ms", "peer_ms", "spread"))
    cells = [f"`{result['case']}`", str(result["threads"]), milliseconds(ours, spread["ours_ms"])]
    cells += [milliseconds(floor, spread["floor_ms"]), f"{ours / floor:.2f}"] if floor else ["", ""]
    cells += [milliseconds(peer, spread["peer_ms"]), f"{peer / ours:.2f}"] if peer else ["", ""]
    return f"| {' | '.join(cells)} |"


def table(results: Sequence[Mapping[str, Any]]) -> str:
    """The table, and below it what follows from the results together."""
    return "\n".join([HEAD, *map(row, results), "", *(f"- {text}" for text in follows(results))])


if __name__ == "__main__":
    print(table([result for file in sys.argv[1:] for result in json.loads(Path(file).read_text(encoding="utf-8"))]))
