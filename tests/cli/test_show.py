"""Signs of life on a terminal, none in a pipe; text from files that cannot steer the terminal."""

import io

import pytest

from loratk.cli.show import clean, counting, track, working


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture(params=[Terminal, io.StringIO])
def stderr(request, monkeypatch):
    """A function that puts a terminal or a pipe in the place of standard error, and returns it."""
    monkeypatch.setenv("TERM", "xterm")
    for name in ("TTY_COMPATIBLE", "TTY_INTERACTIVE", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)

    def put():
        file = request.param()
        monkeypatch.setattr("sys.stderr", file)
        return file

    return put


def test_items_are_all_given(stderr):
    file = stderr()
    assert list(track(["a", "b", "c"], "measuring")) == ["a", "b", "c"]
    assert ("measuring" in file.getvalue()) == file.isatty() == bool(file.getvalue())


def test_one_item_needs_no_bar(stderr):
    file = stderr()
    assert list(track(["a"], "measuring")) == ["a"]
    assert file.getvalue() == ""


def test_counting(stderr):
    file = stderr()
    with counting("merging") as progress:
        for name in "abc":
            progress(name, 3)
    assert ("100%" in file.getvalue()) == file.isatty() == bool(file.getvalue())


def test_working(stderr):
    file = stderr()
    with working("converting"):
        pass
    assert ("converting" in file.getvalue()) == file.isatty() == bool(file.getvalue())


def test_clean():
    assert clean("plain größe") == "plain größe"
    assert clean("a\x1b[31m\n\u202eb\x00\udc80") == "a\\x1b[31m\\n\\u202eb\\x00\\udc80"
    assert clean("x" * 20, 10) == "xxxxxx ..."
