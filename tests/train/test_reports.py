"""What a run tells: history, log, picture, progress line, and silence elsewhere."""

import io
import json
import math
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from train_helpers import EPOCHS, STEPS, TRAIN, InterruptAt, fit, trainer

from loratk.errors import DependencyError, FormatError, StateError, StoreError, UnknownNameError
from loratk.train import History

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def history():
    return fit(trainer(callbacks=[]))


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_history_reads_like_the_run(history):
    assert [record["step"] for record in history.steps] == list(range(1, STEPS + 1))
    assert history["step"] == [7, 14, 21]
    assert history["rows"] == [104] * EPOCHS
    first = history.steps[:7]
    assert history["loss"][0] == pytest.approx(sum(r["loss"] * r["rows"] for r in first) / 104, rel=1e-12)
    assert set(first[0]) == {"epoch", "step", "rows", "loss", "lr", "grad_norm", "seconds"}
    seconds = [record["seconds"] for record in history.steps]
    assert seconds == sorted(seconds)
    with pytest.raises(UnknownNameError, match="has no 'f1'; its epochs record 'accuracy', 'epoch'"):
        history["f1"]


def test_best():
    history = History(epochs=[{"epoch": e, "val_loss": v, "score": v} for e, v in enumerate((0.5, math.nan, 0.3, 0.3, 0.9), 1)])
    assert history.best()["epoch"] == 3
    assert history.best("score", mode="max")["epoch"] == 5
    with pytest.raises(UnknownNameError, match="no 'nope'"):
        history.best("nope")
    with pytest.raises(StateError, match="all are NaN"):
        History(epochs=[{"val_loss": math.nan}]).best()


def test_json_round_trip(history):
    assert History.from_json(history.to_json()) == history
    odd = History(epochs=[{"epoch": 1, "r2": math.nan}])
    assert json.loads(odd.to_json())["epochs"] == [{"epoch": 1, "r2": None}]
    assert math.isnan(History.from_json(odd.to_json())["r2"][0])
    for text in ("", "[]", '{"steps": 3, "epochs": []}'):
        with pytest.raises(FormatError):
            History.from_json(text)


def test_the_log_is_the_history_line_by_line(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text("from another run\n")
    history = fit(trainer(log=path))
    found = lines(path)
    assert [line for line in found if line.pop("event") == "step"] == history.steps
    assert [line for line in lines(path) if line["event"] == "epoch"] == [{"event": "epoch"} | record for record in history.epochs]
    assert [line["event"] for line in lines(path)[6:9]] == ["step", "epoch", "step"]


def test_a_resumed_log_has_nothing_twice_and_nothing_missing(tmp_path):
    path = tmp_path / "log.jsonl"
    with pytest.raises(KeyboardInterrupt):
        fit(trainer([InterruptAt(16)], log=path, checkpoint=tmp_path / "run.npz"))
    assert [line["step"] for line in lines(path)][-1] == 16
    with path.open("a") as file:  # as if the process had gone on after the checkpoint, and died in the middle of a line
        file.write('{"event": "step", "epoch": 3, "step": 17}\n{"event": "st')
    resumed = trainer([InterruptAt()], log=path)
    resumed.resume(tmp_path / "run.npz")
    fit(resumed)
    assert [line["event"] for line in lines(path)] == (["step"] * 7 + ["epoch"]) * EPOCHS
    assert [line["step"] for line in lines(path) if line["event"] == "step"] == list(range(1, STEPS + 1))
    assert [line["epoch"] for line in lines(path) if line["event"] == "epoch"] == [1, 2, 3]


def test_the_log_is_on_the_disk_after_every_step(tmp_path):
    seen = []

    class Look(InterruptAt):
        def on_epoch_start(self, trainer):
            seen.append(len(lines(tmp_path / "log.jsonl")))

    fit(trainer([Look()], log=tmp_path / "log.jsonl"))
    assert seen == [0, 8, 16]
    with pytest.raises(StoreError, match="no folder"):
        fit(trainer(log=tmp_path / "none" / "log.jsonl"))


def test_the_picture(history, tmp_path):
    pytest.importorskip("matplotlib")
    history.plot(tmp_path / "run.png")
    assert (tmp_path / "run.png").read_bytes().startswith(b"\x89PNG")
    history.plot(tmp_path / "run.svg")
    svg = (tmp_path / "run.svg").read_text()
    for text in ("loss", "accuracy", "validation", "training", "each step", "best: "):
        assert f"<!-- {text}" in svg
    bare = History(epochs=[{"epoch": 1, "step": 1, "loss": math.nan, "rows": 1, "seconds": 0.0}])
    bare.plot(tmp_path / "bare.png")
    with pytest.raises(StoreError, match="cannot write"):
        history.plot(tmp_path / "none" / "run.png")
    with pytest.raises(StoreError, match="xyz"):
        history.plot(tmp_path / "run.xyz")
    with pytest.raises(StateError, match="nothing to draw"):
        History().plot(tmp_path / "empty.png")


def test_the_picture_of_an_unfinished_run_puts_each_step_where_it_belongs(history):
    from loratk.train.plot import _steps

    x, y = _steps(History(history.steps[:10], history.epochs[:1]))
    np.testing.assert_allclose(x, np.arange(1, 11) / 7)
    assert list(y) == [record["loss"] for record in history.steps[:10]]


def test_without_matplotlib_the_error_says_what_to_install(history, tmp_path, monkeypatch):
    for name in ("matplotlib.backends.backend_agg", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(DependencyError, match=r"pip install 'loratk\[plot\]'"):
        history.plot(tmp_path / "run.png")


def test_the_progress_line_shows_on_a_terminal():
    screen = io.StringIO()
    fit(trainer(progress=Console(file=screen, force_terminal=True, width=140)))
    shown = screen.getvalue()
    for text in ("epoch 3/3", "━━━━━━", "loss ", "rows/s", "left", "val_loss", "val_accuracy"):
        assert text in shown


def test_the_progress_line_fits_a_narrow_terminal():
    screen = io.StringIO()
    fit(trainer(progress=Console(file=screen, force_terminal=True, width=80)))
    shown = screen.getvalue()
    assert "…" not in shown
    assert "val_loss" in shown


def test_the_progress_line_starts_where_a_resumed_run_does(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        fit(trainer([InterruptAt(14)], checkpoint=tmp_path / "run.npz"))
    resumed = trainer([InterruptAt()])
    resumed.resume(tmp_path / "run.npz")
    planned = []
    resumed.callbacks[1].on_fit_start = lambda trainer: planned.append(trainer.steps_planned())
    fit(resumed)
    assert planned == [(14, 21)]
    assert resumed.steps_planned() == (21, 21)


def test_steps_planned_of_batches_without_a_length():
    planned = []

    class Look(InterruptAt):
        def on_epoch_start(self, trainer):
            planned.append(trainer.steps_planned())

    trainer(callbacks=[Look()], accumulate=2).fit(lambda epoch: iter([TRAIN] * 3), epochs=3)
    assert planned == [(0, None), (2, 6), (4, 6)]


SCRIPT = """
    import sys
    sys.path.insert(0, "tests/train")
    from train_helpers import fit, trainer
    fit(trainer(), epochs=1)
"""


def test_nothing_is_printed_into_a_pipe():
    got = subprocess.run([sys.executable, "-c", textwrap.dedent(SCRIPT)], capture_output=True, text=True, cwd=ROOT, check=True)
    assert (got.stdout, got.stderr) == ("", "")


def test_progress_false_is_silent_on_a_terminal(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes that for a terminal
    fit(trainer(progress=False), epochs=1)
    assert capsys.readouterr() == ("", "")
    fit(trainer(), epochs=1)
    assert "epoch 1/1" in capsys.readouterr().err
