"""A folder's files change together: whole old or whole new, for every reader, whatever happens to the writers."""

import multiprocessing
import os
import re
import shutil
import sys
import threading
import time
import warnings

import pytest

from loratk.errors import ConfigError, StoreError
from loratk.io import atomic_file, opened_files, replaced_files
from loratk.io import homes as homes_module
from loratk.io.folder import MARK

NAMES = ["config.json", "tensors.bin", "second/config.json"]
forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork() here to kill a writer with")
locks = pytest.mark.skipif(sys.platform == "win32", reason="no locks for folders on Windows")


def write(root, value, names=NAMES):
    """Write the value into each file, with a length that depends on it."""
    with replaced_files(root, names) as places:
        for place in places.values():
            with atomic_file(place) as file:
                file.write(f"{value} ".encode() * (1 + int(value) % 7))


def read(root, names=NAMES):
    """The values of the files, None for one that is not there."""
    with opened_files(root, names) as files:
        return [None if file is None else file.read().split()[0].decode() for file in files.values()]


def entries(root):
    """Everything below a folder, by its name in it."""
    return sorted(entry.relative_to(root).as_posix() for entry in root.rglob("*"))


def killed_at(step, root, value, names=NAMES):
    """Write in a process of its own that dies before that step of those the disk can see; whether it came to its end."""
    with warnings.catch_warnings(action="ignore"):  # of threads, which the child does not use
        child = os.fork()
    if not child:
        count = 0

        def counted(real):
            def call(*arguments, **options):
                nonlocal count
                count += 1
                if count > step:
                    os._exit(9)
                return real(*arguments, **options)

            return call

        for name in ("replace", "rename", "unlink", "mkdir", "fsync", "rmdir", "chmod"):
            setattr(os, name, counted(getattr(os, name)))
        try:
            write(root, value, names)
        finally:
            os._exit(0 if sys.exc_info()[0] is None else 1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def states(root):
    """The files at each step of a killed write over an old one, and the folder as the kill left it."""
    for step in range(1000):
        shutil.rmtree(root, ignore_errors=True)
        write(root, 1)
        done = killed_at(step, root, 2)
        yield done, read(root)
        if done:
            return


@forks
def test_a_write_killed_at_any_step_leaves_all_old_or_all_new(tmp_path):
    root, seen = tmp_path / "x", []
    for done, got in states(root):
        assert got in (["1"] * 3, ["2"] * 3)
        seen.append(got[0])
        assert read(root / "second", ["config.json"]) == [got[2]], "an inner folder by itself"
        write(root, 3)
        assert read(root) == ["3"] * 3
        assert entries(root) == sorted(["second", *NAMES])
        assert os.listdir(tmp_path) == ["x"]
        assert not done or got == ["2"] * 3
    assert seen == sorted(seen)
    assert seen.count("1") > 10
    assert seen.count("2") > 5


@forks
def test_a_new_folder_appears_whole(tmp_path):
    root, seen = tmp_path / "x", []
    for step in range(1000):
        shutil.rmtree(root, ignore_errors=True)
        done = killed_at(step, root, 2)
        seen.append(root.exists())
        assert read(root) == (["2"] * 3 if seen[-1] else [None] * 3)
        write(root, 3)
        assert entries(root) == sorted(["second", *NAMES])
        assert os.listdir(tmp_path) == ["x"]
        if done:
            break
    assert done
    assert seen == sorted(seen)
    assert seen.count(False) > 10


@forks
def test_a_second_write_may_be_killed_too(tmp_path):
    """The first died between two moves, so that the files are whole only by the mark; the second may be one of the inner folder."""
    root = tmp_path / "x"
    for done, got in states(root):
        if got == ["2"] * 3 and not done and (root / MARK).exists() and len(entries(root)) > 8:
            break
    shutil.copytree(root, tmp_path / "half")
    for names, place, want in ((NAMES, root, ["3"] * 3), (["config.json"], root / "second", ["2", "2", "3"])):
        for step in range(1000):
            shutil.rmtree(root)
            shutil.copytree(tmp_path / "half", root)
            done = killed_at(step, place, 3, names)
            assert read(root) in (["2"] * 3, want)
            if done:
                break
        assert step > 10
        assert read(root) == want
        assert not (root / MARK).exists()


@forks
def test_another_writer_is_killed_in_the_middle_of_a_write(tmp_path):
    """What its mark says counts is put in its place before the files of this one."""
    root, marked = tmp_path / "x", 0
    for step in range(1000):
        shutil.rmtree(root, ignore_errors=True)
        write(root, 1)
        with replaced_files(root, ["tensors.bin"]) as places:
            places["tensors.bin"].write_text("3 ")
            done = killed_at(step, root, 2)
            marked += (root / MARK).exists()
            want = read(root)
        assert read(root) == [want[0], "3", want[2]]
        if done:
            break
    assert marked > 3


@pytest.mark.parametrize("writers", [1, 2])
@locks
def test_who_reads_while_others_write_has_files_of_one_write(writers, tmp_path):
    """And each writer in a process of its own; afterwards nothing else is left."""
    root, context = tmp_path / "x", multiprocessing.get_context("forkserver")
    write(root, 1)
    processes = [context.Process(target=write_many, args=(root, 1000 * number)) for number in range(1, writers + 1)]
    for process in processes:
        process.start()
    seen = set()
    while any(process.is_alive() for process in processes):
        got = read(root)
        assert len(set(got)) == 1, got
        seen.add(got[0])
    assert [process.exitcode for process in processes] == [0] * writers
    assert len(seen) > 5
    assert entries(root) == sorted(["second", *NAMES])


def write_many(root, start):
    """Write a hundred times."""
    for value in range(start, start + 100):
        write(root, value)


@locks
def test_writers_that_make_one_new_folder(tmp_path):
    """The one that comes later writes over the first, whole, and in the end nothing else is there."""
    for turn in range(20):
        root = tmp_path / str(turn)
        ready = threading.Barrier(4)

        def begin(value, root=root, ready=ready):
            ready.wait()
            write(root, value)

        threads = [threading.Thread(target=begin, args=(value,)) for value in range(1, 5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(set(read(root))) == 1
        assert entries(root) == sorted(["second", *NAMES])
    assert sorted(os.listdir(tmp_path)) == sorted(map(str, range(20)))


@locks
def test_a_writer_waits_for_another_but_not_for_ever(tmp_path, monkeypatch):
    root = tmp_path / "x"
    write(root, 1)
    with homes_module.locked(root):
        monkeypatch.setattr(homes_module, "PATIENCE", 0.05)
        with pytest.raises(StoreError, match="another program is writing it"):
            write(root, 2)
        monkeypatch.setattr(homes_module, "PATIENCE", 30)
        thread = threading.Thread(target=write, args=(root, 3))
        thread.start()
        time.sleep(0.05)
        assert read(root) == ["1"] * 3
    thread.join()
    assert read(root) == ["3"] * 3


@locks
def test_a_home_in_use_is_left_alone(tmp_path):
    root = tmp_path / "x"
    write(root, 1)
    with replaced_files(root, NAMES) as places:
        write(root, 2)
        for place in places.values():
            place.write_text("4 ")
    assert read(root) == ["4"] * 3
    assert entries(root) == sorted(["second", *NAMES])


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
