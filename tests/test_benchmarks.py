"""The benchmark runner runs, and writes what it says."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def bench(*options):
    return subprocess.run([sys.executable, "-m", "benchmarks", *options], cwd=ROOT, capture_output=True, text=True)


def test_a_case_is_timed_and_written(tmp_path):
    done = bench("--case", "classifier-64-64-*", "--json", str(tmp_path / "results.json"))
    assert done.returncode == 0, done.stderr
    assert "classifier-64-64-128-64-10-r8" in done.stdout
    (got,) = json.loads((tmp_path / "results.json").read_text())
    assert got["case"] == "classifier-64-64-128-64-10-r8"
    assert got["ours_ms"] > 0 < got["floor_ms"]
    assert got["peer"] is None


def test_a_case_that_does_not_exist():
    done = bench("--case", "nothing*")
    assert done.returncode == 2
    assert "no case matches 'nothing*'" in done.stderr
