"""The comparison of methods runs for every way that it lists, and writes what it says."""

import json
from pathlib import Path

import pytest

from benchmarks.methods import runs
from benchmarks.methods.__main__ import main, table
from benchmarks.methods.ways import WAYS
from loratk.plugins import default_registry

PAGE = Path(__file__).parent.parent / "docs" / "methods.md"


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(runs, "EPOCHS", 1)
    monkeypatch.setattr(runs, "RATES", (3e-3,))


def test_every_method_and_init_of_loratk_is_among_the_ways():
    registry = default_registry()
    shown = {kind: {way.settings.get(kind) for way in WAYS} for kind in ("method", "init")}
    mine = {name for (kind, name), owner in registry.owners.items() if kind == "method" and owner == "lora"}
    inits = {name for (kind, name), owner in registry.owners.items() if kind == "init" and owner == "lora"}
    assert mine - shown["method"] == {"lora"}
    assert inits - shown["init"] == {"kaiming", "gaussian"}


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.label)
def test_a_way_trains_is_saved_and_steps(short, way):
    got = runs.outcome(way, [0])
    assert got.losses[-1] < got.losses[0]
    assert 0 < got.parameters < 13_000
    assert runs.step_times([way], turns=1, steps=1)[way.label] > 0


def test_the_command_writes_table_json_and_picture(short, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["methods", "--seeds", "1", "--only", "LoRA", "--only", "PiSSA",
                                     "--json", str(tmp_path / "m.json"), "--plot", str(tmp_path / "m.png")])  # fmt: skip
    main()
    outcomes = [runs.Outcome(**each) for each in json.loads((tmp_path / "m.json").read_text(encoding="utf-8"))]
    assert capsys.readouterr().out.strip() == table(outcomes)
    assert (tmp_path / "m.png").stat().st_size > 10_000


def test_the_page_has_a_row_for_every_way():
    page = PAGE.read_text(encoding="utf-8")
    assert [way.label for way in WAYS if f"| {way.label} |" not in page] == []
