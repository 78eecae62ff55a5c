"""The benchmark runner runs, and writes what it says."""

import json
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from benchmarks.case import WAYS
from benchmarks.cases import CASES, MEMORY, START_UP, named
from benchmarks.convolution import Convolution
from benchmarks.follows import follows, growth
from benchmarks.layer import Layer
from benchmarks.memory import memory
from benchmarks.network import Network
from benchmarks.processes import WorkerError, remote
from benchmarks.result import line, result
from benchmarks.runner import Runner
from benchmarks.start_up import first_step
from benchmarks.table import BEGIN, END, fill, table

ROOT = Path(__file__).parent.parent
KEYS = {"case", "threads", "ours_ms", "peer", "peer_ms", "floor_ms", "spread"}


def bench(*options):
    return subprocess.run([sys.executable, "-m", "benchmarks", *options], cwd=ROOT, capture_output=True, text=True)


def small(case):
    """The case with few rows and narrow layers."""
    if isinstance(case, Network):
        return replace(case, rows=3, sizes=tuple(min(size, 12) for size in case.sizes[:4]), rank=2)
    if isinstance(case, Convolution):
        return replace(case, rows=2, c=3, k=4, side=5, rank=2)
    return replace(case, rows=min(case.rows, 3), d=8, k=6, rank=2)


def test_a_case_is_timed_and_written(tmp_path):
    done = bench("--case", "classifier-64-64-*", "--turns", "1", "--json", str(tmp_path / "results.json"))
    assert done.returncode == 0, done.stderr
    assert "classifier-64-64-128-64-10-r8" in done.stdout
    assert "numpy" in done.stdout
    (got,) = json.loads((tmp_path / "results.json").read_text())
    assert set(got) == KEYS
    assert got["case"] == "classifier-64-64-128-64-10-r8"
    assert got["ours_ms"] > 0 < got["floor_ms"]
    assert got["peer"] is got["peer_ms"] is got["spread"]["peer_ms"] is None
    assert got["spread"]["ours_ms"] >= 0 <= got["spread"]["floor_ms"]
    assert got["threads"] >= 1


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--case", "nothing*"], "no case matches 'nothing*'"),
        (["--turns", "0"], "--turns must be at least 1, found 0"),
        pytest.param(
            ["--peer", "peft"], "python -m pip install torch peft", marks=pytest.mark.skipif(bool(find_spec("peft")), reason="PEFT is here")
        ),
    ],
)
def test_what_cannot_be_done_is_told(options, told):
    done = bench(*options)
    assert done.returncode == 2
    assert told in done.stderr


def test_names_are_listed_and_their_own():
    got = bench("--list").stdout.split()
    assert len(set(got)) == len(got)
    assert {case.name for case in CASES} | {f"memory-{name}" for name in MEMORY} | {"start-up-cold", "start-up-warm"} == set(got)
    assert START_UP in got


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("way", WAYS)
def test_each_way_of_a_case_takes_steps(case, way):
    if way == "peft":
        pytest.importorskip("torch")
        pytest.importorskip("peft")
    elif way == "floor by torch":
        pytest.importorskip("torch")
    step = small(case).step(way)
    step()
    step()


def test_the_case_and_its_peer_compute_the_same():
    """Both are handed one weight and one adapter, so that what is compared is one thing."""
    pytest.importorskip("peft")
    import torch

    case = Layer("small", 5, d=8, k=6, rank=2)
    ours, theirs = case.ours_model(), case.peft_model()
    layer = theirs.base_model.model[0]
    rng = np.random.default_rng(0)
    x = rng.standard_normal((5, 8), np.float32)
    for parameter in ours.trainable():
        parameter.assign(rng.standard_normal(parameter.shape, np.float32))
    arrays = {name: parameter.data for name, parameter in ours.named_parameters()}
    with torch.no_grad():
        for name, array in arrays.items():
            got = layer.base_layer.bias if name.endswith("bias") else None
            got = layer.base_layer.weight if name.endswith("weight") else got
            got = layer.lora_A["default"].weight if name.endswith("lora_A") else got
            got = layer.lora_B["default"].weight if name.endswith("lora_B") else got
            got.copy_(torch.tensor(np.ascontiguousarray(array.T)))
        want = theirs(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(ours(x).data, want, rtol=1e-5, atol=1e-6)


def test_the_memory_of_a_step_follows_its_rows():
    pytest.importorskip("resource")
    with remote(1) as fresh:
        few = fresh.ask("memory", Layer("few", 512, d=512, k=512), "ours")
    with remote(1) as fresh:
        many = fresh.ask("memory", Layer("many", 8192, d=512, k=512), "ours")
    assert many.weights == few.weights >= 512 * 512 * 4
    assert many.step > 2 * 8192 * 512 * 4 > few.step  # at least y and dx


def test_allocations_of_a_step_are_counted():
    with remote(1) as worker:
        assert worker.ask("allocations", named(START_UP)) > 0


def test_a_fault_in_a_worker_comes_out():
    with remote(1) as worker:
        with pytest.raises(WorkerError, match="rank"):
            worker.ask("build", Layer("narrow", 2, d=4, k=4, rank=8), "ours")
        assert worker.ask("build", Layer("fits", 2, d=4, k=4, rank=2), "ours") > 0


def test_a_process_that_cannot_start_a_case_is_a_failure(tmp_path):
    with pytest.raises(subprocess.CalledProcessError):
        first_step(Layer("narrow", 2, d=4, k=4, rank=8), "ours", 1, str(tmp_path))


def test_growth_finds_the_exponent_and_the_line():
    sizes = [8, 16, 32, 64]
    got, off = growth(sizes, [3.0 * size for size in sizes])
    assert (round(got, 6), round(off, 6)) == (1, 0)
    _, off = growth(sizes, [5 + 3.0 * size for size in sizes])
    assert round(off, 6) == 0
    got, off = growth(sizes, [size**2 for size in sizes])
    assert round(got, 6) == 2
    assert off > 0.2


def test_what_follows_from_results():
    times = {"linear": 10.0, "linear-one-thread": 19.0, "java-forward": 1.0, "depth-8": 1.0, "depth-16": 2.0, "depth-32": 4.0}
    results = [result(name, 1 if "one" in name else 2, None, {"ours": [time] * 3}) for name, time in times.items()]
    speed, java, depth = follows(results)
    assert speed == "linear: 1.90 times as fast on 2 threads as on one"
    assert java.startswith("java-forward: 310 times as fast")
    assert depth == "depth 8 to 32: time ~ depth^1.00, at most 0% off a straight line"


def test_figures_that_scatter_are_marked():
    assert "UNSTEADY" in line(result("case", 2, None, {"ours": [1.0, 2.0, 3.0, 4.0]}))
    assert "UNSTEADY" not in line(result("case", 2, None, {"ours": [3.0, 3.1, 3.0, 3.1]}))


def test_the_table_of_results():
    taken = {"ours": [2.0] * 3, "peft": [5.0] * 3, "floor": [1.0] * 3}
    got = table([result("both", 2, "peft", taken, floor="floor"), result("alone", 1, None, {"ours": [1500.0] * 3})]).splitlines()
    assert got[2] == "| `both` | 2 | 2 ms ±0% | 1 ms ±0% | 2.00 | 5 ms ±0% | 2.50 |"
    assert got[3] == "| `alone` | 1 | 1500 ms ±0% |  |  |  |  |"


def test_the_page_has_a_place_for_the_table():
    page = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    got = fill(page, "the new table")
    assert got.startswith(page.split(BEGIN)[0])
    assert got.endswith(page.split(END)[1])
    assert f"{BEGIN}\nthe new table\n{END}" in got


def test_the_floor_is_the_faster_library(monkeypatch):
    taken = {"ours": [3.0] * 3, "peft": [6.0] * 3, "floor by numpy": [2.0] * 3, "floor by torch": [1.0] * 3}
    monkeypatch.setattr("benchmarks.runner.in_turns", lambda *arguments, **options: taken)
    monkeypatch.setattr(Runner, "_worker", lambda self, way, threads: None)
    with Runner(peer="peft", turns=1, threads=2) as runner:
        found, floor_by = runner.run(CASES[0])
    assert (found["ours_ms"], found["peer_ms"], found["floor_ms"], floor_by) == (3, 6, 1, "floor by torch")
    assert found["peer"] == "peft"


def test_the_picture_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    from benchmarks.plot import plot

    plot(tmp_path / "picture.png", lambda case: {"ours": case.rows / 100, "peft": None, "floor": case.rank / 100})
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_memory_counts_the_weights():
    pytest.importorskip("resource")
    got = memory(small(named(START_UP)), "ours")
    assert got.weights >= 4 * (12 * 12 + 12) * 2 + 4 * (12 * 10 + 10)
