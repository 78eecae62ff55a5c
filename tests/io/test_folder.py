"""What replaced_files changes in a folder, and what it leaves and refuses."""

import os
import re

import pytest

from loratk.errors import ConfigError, StoreError
from loratk.io import homes as homes_module
from loratk.io import replaced_files
from loratk.io.folder import MARK
from tests.io.folder_files import NAMES, entries, read, write


def test_where_there_are_no_locks(tmp_path, monkeypatch):
    """All works but for writers at once; what killed ones left stays for a day."""
    monkeypatch.setattr(homes_module, "fcntl", None)
    root = tmp_path / "x"
    write(root, 1)
    old, young = (root / f".files.{homes_prefix(root)}{number}-0.loratk-tmp" for number in (1, 2))
    for home in (old, young):
        home.mkdir()
    os.utime(old, (1, 1))
    write(root, 2)
    assert read(root) == ["2"] * 3
    assert not old.exists()
    assert young.exists()


def homes_prefix(root):
    """What the name of a home in a folder has after ".files."."""
    return "".join(homes_module.temporary_prefix(root / "files")).removeprefix(".files.")


def test_what_raises_in_the_block_changes_nothing(tmp_path):
    root = tmp_path / "x"
    for there in (False, True):
        if there:
            write(root, 1)
        before = entries(tmp_path)
        for error, told in ((ValueError, ValueError), (OSError, StoreError), (KeyboardInterrupt, KeyboardInterrupt)):
            with pytest.raises(told):
                write_and_raise(root, error)
            assert entries(tmp_path) == before
    assert read(root) == ["1"] * 3


def write_and_raise(root, error):
    with replaced_files(root, [*NAMES, "third/x"]) as places:
        places["config.json"].write_text("9 ")
        places["third/x"].write_text("9 ")
        raise error


def test_what_is_not_written_stays(tmp_path):
    root = tmp_path / "x"
    write(root, 1)
    (root / "README.md").write_text("mine")
    os.chmod(root / "config.json", 0o640)
    with replaced_files(root, ["config.json", "tensors.bin"]) as places:
        places["config.json"].write_text("2 ")
    assert read(root) == ["2", "1", "1"]
    assert (root / "README.md").read_text() == "mine"
    assert os.name == "nt" or (root / "config.json").stat().st_mode & 0o777 == 0o640


def test_a_file_that_is_the_same_is_not_touched(tmp_path):
    root = tmp_path / "x"
    write(root, 1)
    inode = (root / "config.json").stat().st_ino
    with replaced_files(root, ["config.json", "tensors.bin"]) as places:
        places["config.json"].write_bytes((root / "config.json").read_bytes())
        places["tensors.bin"].write_text("2 ")
    assert read(root) == ["1", "2", "1"]
    assert (root / "config.json").stat().st_ino == inode


def test_where_nothing_can_be_written(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "x" / "config.json").mkdir(parents=True)
    for place, said in (
        (tmp_path / "file", "it is a file; give the path of a folder"),
        (tmp_path / "no" / "x", "there is no folder"),
        (tmp_path / "x", "it is a folder; move it away"),
    ):
        with pytest.raises(StoreError, match=said):
            write(place, 1)
    assert entries(tmp_path) == ["file", "x", "x/config.json"]
    with pytest.raises(StoreError, match="cannot read"):
        read(tmp_path / "x")
    for name in ("../x", "a/b/c", "/x", "", ".x", "a//b", "a/..", "..\\x"):
        with pytest.raises(ConfigError, match="no file in it can be named " + re.escape(repr(name))):
            write(tmp_path / "y", 1, ["a", name])
    assert read(tmp_path / "file", ["x"]) == [None]


def test_links_to_folders_are_followed(tmp_path):
    write(tmp_path / "x", 1)
    (tmp_path / "link").symlink_to("x", target_is_directory=True)
    write(tmp_path / "link", 2)
    assert (tmp_path / "link").is_symlink()
    assert read(tmp_path / "x") == read(tmp_path / "link") == ["2"] * 3


@pytest.mark.parametrize("mark", [b"", b"..", b"../outside", b"second", b"\xff" * 1000, b".files.00000000-00000000-1-1.loratk-tmp"])
def test_a_mark_that_leads_elsewhere_is_none(mark, tmp_path):
    root = tmp_path / "x"
    write(root, 1)
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "config.json").write_text("9 ")
    (root / ".files.00000000-00000000-1-1.loratk-tmp").symlink_to(tmp_path / "outside", target_is_directory=True)
    (root / MARK).write_bytes(mark)
    assert read(root) == ["1"] * 3
    write(root, 2)
    assert read(root) == ["2"] * 3
    assert not (root / MARK).exists()
    assert (tmp_path / "outside" / "config.json").read_text() == "9 "
