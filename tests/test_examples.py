"""Each script in examples/ runs as it stands."""

import re
import runpy
import sys
from pathlib import Path

import pytest

SCRIPTS = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=[script.stem for script in SCRIPTS])
def test_script(script, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(script), str(tmp_path)])
    runpy.run_path(str(script), run_name="__main__")
    assert capsys.readouterr().out


def test_fine_tuning_does_what_it_says(tmp_path, capsys):
    runpy.run_path(str(SCRIPTS[0].parent / "fine_tune.py"))["main"](tmp_path)
    base, changed, adapted, off = (float(found) for found in re.findall(r"([\d.]+)%$", capsys.readouterr().out, re.MULTILINE))
    assert base > 95
    assert changed < 70
    assert adapted > 90
    assert off == base
