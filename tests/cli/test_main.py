"""The command line as such: what it loads, how it fails, and what its pages say."""

import importlib
import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest

from loratk.cli import COMMANDS, main
from loratk.errors import FormatError, faults

DOCS = Path(__file__).parents[2] / "docs"


def python(*args, **kwargs):
    return subprocess.run([sys.executable, *args], capture_output=True, text=True, timeout=60, **kwargs)


@pytest.mark.parametrize(
    "args",
    [
        ["--help"],
        ["demo", "--help"],
        ["inspect", "--help"],
        ["export", "--help"],
        ["diff", "--help"],
        ["verify", "--help"],
        ["--version"],
        ["demo", "--rank", "0"],
    ],
)
def test_help_and_usage_errors_load_nothing_heavy(args):
    code = (
        "import sys, loratk.cli\n"
        f"try: loratk.cli.main({args!r})\n"
        "except SystemExit: pass\n"
        "print([name for name in ('numba', 'numpy', 'h5py', 'rich', 'pluggy', 'matplotlib') if name in sys.modules])"
    )
    assert python("-c", code).stdout.splitlines()[-1] == "[]"


def test_every_command_has_help_that_fits_the_list(run):
    listed = run("--help").stdout
    for name in COMMANDS:
        command = importlib.import_module(f"loratk.cli.{name}").command
        assert command.name == name
        assert command.get_short_help_str(100) in listed
        assert "..." not in command.get_short_help_str(100)
        assert len(run(name, "--help").stdout.splitlines()) > 5
        assert [option.name for option in command.params if isinstance(option, click.Option) and not option.help] == []


def test_the_page_shows_the_help_of_every_command():
    spec = importlib.util.spec_from_file_location("make_cli", DOCS / "make_cli.py")
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    text = made.PAGE.read_text(encoding="utf-8")
    assert text == made.page(text), "run: python docs/make_cli.py"
    assert text.count("Usage: loratk") == len(COMMANDS) + 1


def test_python_m_loratk_is_the_same():
    got = python("-m", "loratk", "--help")
    assert got.returncode == 0
    assert got.stdout.startswith("Usage: loratk [OPTIONS]")


def fail_with(monkeypatch, error):
    def command():
        raise error

    monkeypatch.setattr("loratk.cli.plugins.command", click.Command("plugins", callback=command))


def test_an_error_on_purpose_is_a_line_a_fault_on_stderr_and_exits_1(run, monkeypatch):
    fail_with(monkeypatch, FormatError(faults("bad file:", ["one", "two"])))
    got = run("plugins")
    assert got.exit_code == 1
    assert got.stdout == ""
    assert got.stderr == "Error: bad file:\n  - one\n  - two\n"


def test_a_bug_shows_its_traceback(run, monkeypatch):
    fail_with(monkeypatch, ZeroDivisionError("bug"))
    assert isinstance(run("plugins").exception, ZeroDivisionError)


def test_an_interrupt_exits_130(run, monkeypatch):
    fail_with(monkeypatch, KeyboardInterrupt())
    got = run("plugins")
    assert got.exit_code == 130
    assert "Interrupted" in got.stderr


@pytest.mark.skipif(os.name == "nt", reason="there, Ctrl-C cannot be sent to one process")
def test_ctrl_c_ends_a_training_with_130_and_without_a_traceback(tmp_path):
    command = [sys.executable, "-m", "loratk", "demo", "--device", "reference", "--out", tmp_path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1) as process:
        process.stdout.readline()  # it has begun
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in stderr


@pytest.mark.parametrize(
    "args", [["nope"], ["inspect"], ["demo", "--rank", "0"], ["demo", "--seed", "x"], ["export", "a"], ["info", "--no"]]
)
def test_wrong_usage_exits_2(run, args):
    got = run(*args)
    assert got.exit_code == 2
    assert got.stderr.startswith("Usage: loratk")


@pytest.mark.skipif(os.name == "nt", reason="pipes close otherwise there")
@pytest.mark.parametrize("command", ["plugins", "info --json", "--help"])
def test_a_closed_pipe_is_quiet(command):
    code = f"import time; time.sleep(0.2); import loratk.cli; loratk.cli.main({command.split()!r})"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
        process.wait(60)


def test_version(run):
    import loratk

    assert run("--version").stdout == f"loratk {loratk.__version__}\n"


def test_the_entry_point_is_the_group():
    assert isinstance(main, click.Group)
