"""Pages that go from step to step do what they say: their Python and their commands run in order, in a folder that was empty."""

import doctest
import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from loratk.cli import main

DOCS = Path(__file__).parent.parent / "docs"
PAGES = ("algebra", "methods", "serving")
BLOCK = re.compile(r"^```(python|sh)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def run_python(text, known, where):
    test = doctest.DocTestParser().get_doctest(text, known, where, where, 0)
    runner = doctest.DocTestRunner(verbose=False)
    said = []
    runner.run(test, out=said.append, clear_globs=False)
    known.update(test.globs)
    assert runner.failures == 0, "".join(said)


def run_commands(text, where):
    """Run lines that begin with "$ "; what stands below one is what it prints."""
    for piece in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        line, _, want = piece.partition("\n")
        arguments = shlex.split(line, comments=True)
        assert arguments.pop(0) == "loratk", line
        got = CliRunner().invoke(main, arguments)
        assert got.exit_code == 0, f"{where}: {line}\n{got.stdout}{got.stderr}"
        assert not want or got.stdout.rstrip() == want.rstrip(), f"{where}: {line}\n{got.stdout}"


@pytest.mark.parametrize("page", PAGES)
def test_a_page_runs_from_top_to_bottom(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = BLOCK.findall((DOCS / f"{page}.md").read_text(encoding="utf-8"))
    known = {}
    count = 0
    for kind, text in blocks:
        if kind == "sh":
            run_commands(text, page)
            count += 1
        elif text.startswith(">>>"):
            run_python(text, known, page)
            count += 1
    assert count > 3
