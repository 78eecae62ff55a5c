"""Whatever happens to the writers of a folder, its files are all old or all new, for every reader."""

import multiprocessing
import os
import shutil
import threading
import time

import pytest

from loratk.errors import StoreError
from loratk.io import homes as homes_module
from loratk.io import replaced_files
from loratk.io.folder import MARK
from tests.io.folder_files import NAMES, entries, forks, killed_at, locks, read, states, write, write_many


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
