"""The benchmark of merging runs, and tells copies, merges and their ratios."""

import subprocess
import sys
from pathlib import Path

import pytest

if not Path("/proc/self/status").exists():
    pytest.skip("no /proc to measure memory with", allow_module_level=True)


def test_a_small_checkpoint(tmp_path):
    command = [
        sys.executable,
        "-m",
        "benchmarks.merging",
        "--gigabytes",
        "0.03",
        "--scale",
        "32",
        "--turns",
        "1",
        "--rank",
        "4",
        "--where",
        tmp_path,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    assert "0.03 GB in" in done.stdout
    assert "s; merge " in done.stdout
    assert "times the copy that is on the disk" in done.stdout
    assert list(tmp_path.iterdir()) == []
