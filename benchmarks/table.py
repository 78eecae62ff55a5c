"""python -m benchmarks.table FILE... [--into PAGE]: the results of `--json` as the table of docs/performance.md."""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .follows import follows

HEAD = "| case | threads | loratk | floor | x floor | PEFT | faster |\n| --- | ---: | ---: | ---: | ---: | ---: | ---: |"
BEGIN, END = "<!-- results -->", "<!-- end of results -->"


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


def fill(page: str, text: str) -> str:
    """The page with the text between its marks in place of what stood there."""
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{text}\n{END}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.table", description="The results of --json as a table in Markdown.")
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="what --json wrote")
    parser.add_argument("--into", type=Path, metavar="PAGE", help=f"put it between {BEGIN} and {END} there")
    chosen = parser.parse_args()
    text = table([result for file in chosen.files for result in json.loads(file.read_text(encoding="utf-8"))])
    if chosen.into:
        chosen.into.write_text(fill(chosen.into.read_text(encoding="utf-8"), text), encoding="utf-8")
    else:
        print(text)


if __name__ == "__main__":
    main()
