"""python -m benchmarks.methods [--seeds N] [--only LABEL]... [--json FILE] [--plot FILE] [--into PAGE]"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from ..table import fill
from .runs import Outcome, outcome, step_times
from .ways import WAYS

HEAD = "| method | accuracy, % | trained numbers | file, bytes | step, x LoRA | learning rate |\n| --- | ---: | ---: | ---: | ---: | ---: |"


def table(outcomes: Sequence[Outcome]) -> str:
    """The outcomes in Markdown, LoRA's step as the measure."""
    unit = next((o.step for o in outcomes if o.label == "LoRA"), outcomes[0].step)
    rows = [
        f"| {o.label} | {o.accuracy:.1f} ±{o.spread / 2:.1f} | {o.parameters:,} | {o.size:,} | {o.step / unit:.2f} | {o.rate:g} |"
        for o in outcomes
    ]
    return "\n".join([HEAD, *rows])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.methods", description="Adapter methods on one task.")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="the mean of how many seeds (3)")
    parser.add_argument("--only", action="append", metavar="LABEL", help=f"one of: {', '.join(way.label for way in WAYS)}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the outcomes there too")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw accuracy against trained numbers, and losses")
    parser.add_argument("--into", type=Path, metavar="PAGE", help="put the table between the marks of a page")
    chosen = parser.parse_args()
    ways = [way for way in WAYS if not chosen.only or way.label in chosen.only]
    if unknown := set(chosen.only or ()) - {way.label for way in WAYS}:
        parser.error(f"there is no way {', '.join(sorted(unknown))}")
    outcomes = []
    for way in ways:
        outcomes.append(outcome(way, range(chosen.seeds)))
        print(f"{way.label:24} {outcomes[-1].accuracy:5.1f} %", file=sys.stderr)
    times = step_times(ways)
    outcomes = [replace(each, step=times[each.label]) for each in outcomes]
    text = table(outcomes)
    print(text)
    if chosen.json:
        chosen.json.write_text(json.dumps([asdict(each) for each in outcomes], indent=1), encoding="utf-8")
    if chosen.plot:
        from .plot import draw

        draw(chosen.plot, outcomes)
    if chosen.into:
        chosen.into.write_text(fill(chosen.into.read_text(encoding="utf-8"), text), encoding="utf-8")


if __name__ == "__main__":
    main()
