"""The page and the example on training do what they say."""

import doctest
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_the_page_is_true():
    pytest.importorskip("matplotlib")
    failed, tried = doctest.testfile(str(ROOT / "docs" / "training.md"), module_relative=False)
    assert tried > 20
    assert failed == 0


def test_the_page_lists_the_events():
    from loratk.train.callbacks import EVENTS

    page = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    assert [event for event in EVENTS if f"| `{event}(trainer" not in page] == []


def test_the_example_runs_and_goes_on_where_it_was(tmp_path):
    command = [sys.executable, str(ROOT / "examples" / "train_mlp.py"), str(tmp_path)]
    first = subprocess.run(command, capture_output=True, text=True, check=True)
    assert first.stderr == ""
    accuracy = float(first.stdout.split("accuracy ")[1].split("%")[0])
    assert accuracy > 90
    steps = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    assert again.stdout == first.stdout
    assert [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()] == steps
