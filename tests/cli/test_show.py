"""Signs of life on a terminal, none in a pipe; text from files that cannot steer the terminal."""

import io

import pytest

from loratk.cli.show import clean, counting, table, track, working


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


def test_a_narrow_terminal_gets_fewer_columns(monkeypatch):
    rows = [("a.long.name.of.a.layer", "12345", "float32")]
    for width, want in ((80, True), (36, False)):
        file = Terminal()
        monkeypatch.setattr("sys.stdout", file)
        monkeypatch.setenv("COLUMNS", str(width))
        monkeypatch.setenv("TERM", "xterm")
        table(("layer", "rank", "dtype"), rows, right=["rank"], spare=["dtype"])
        assert "a.long.name.of.a.layer" in file.getvalue()
        assert "12345" in file.getvalue()
        assert ("float32" in file.getvalue()) == want
        assert ("Not shown for want of width: dtype." in file.getvalue()) != want


def test_clean():
    assert clean("plain größe") == "plain größe"
    assert clean("a\x1b[31m\n\u202eb\x00\udc80") == "a\\x1b[31m\\n\\u202eb\\x00\\udc80"
    assert clean("x" * 20, 10) == "xxxxxx ..."
