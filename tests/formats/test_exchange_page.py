"""docs/exchange.md does what it says: its Python and its commands run, and its tables are those of the formats."""

import doctest
import re
import shlex
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from loratk.cli import main
from loratk.exchange import formats_of
from loratk.plugins import default_registry

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "exchange.md"
TEXT = PAGE.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with what the page's Python leaves in it, and what its commands read besides."""
    folder = tmp_path_factory.mktemp("exchange")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        failed, tried = doctest.testfile(str(PAGE), module_relative=False)
    assert failed == 0
    assert tried > 15
    shutil.copy(ROOT / "tests" / "data" / "loralib.pt", folder)
    shutil.copytree(ROOT / "tests" / "data" / "peft" / "loha", folder / "loha_folder")
    return folder


def test_its_python_runs(folder):
    assert {"mine.h5", "adapter_folder", "dora.h5", "loralib.pt", "loha_folder"} == {entry.name for entry in folder.iterdir()}


def test_its_commands_run(folder, monkeypatch):
    monkeypatch.chdir(folder)
    lines = [line for block in re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL) for line in block.splitlines()]
    assert len(lines) > 5
    for line in lines:
        arguments = shlex.split(line, comments=True)
        assert arguments.pop(0) == "loratk"
        more = ["--force"] if arguments[0] == "export" else []
        got = CliRunner().invoke(main, [*arguments, *more])
        assert got.exit_code == 0, f"{line}\n{got.stderr}"


def test_every_format_is_in_its_table_of_scalings():
    table = TEXT.split("| format | the scaling is |")[1].split("\n\n")[0].lower()
    for name, format in formats_of(default_registry()).items():
        assert name in table or ("loratk's own" in table and format.title.startswith("loratk")), name
