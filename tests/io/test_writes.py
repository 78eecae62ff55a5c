"""Whatever stops a write, the file is the old one or the new one, whole, and what was left beside it goes with the next write."""

import multiprocessing
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

from loratk.errors import FormatError, LoratkError
from loratk.io import Hdf5Store

if sys.platform == "win32":
    pytest.skip("signals, limits and permissions of POSIX", allow_module_level=True)

from tests.io import writer

KILLS = {"hdf5": 200}
FEWER = 20
FORK = multiprocessing.get_context("forkserver")
FORK.set_forkserver_preload(["tests.io.writer"])
WRITABLE = [name for name, format in writer.FORMATS.items() if format.writable]


@pytest.fixture(params=WRITABLE)
def name(request, tmp_path):
    try:
        writer.write(tmp_path / "trial", request.param, 1)
    except LoratkError as error:
        pytest.skip(f"{request.param} cannot hold the adapter of this test: {error}")
    return request.param


@pytest.fixture
def path(name, tmp_path):
    folder = tmp_path / "only"
    folder.mkdir()
    return folder / f"file{'' if writer.FORMATS[name].folder else '.bin'}"


def entries(path):
    """All files beside and below a path."""
    return sorted(str(entry.relative_to(path.parent)) for entry in path.parent.rglob("*"))


def started(target, *arguments):
    mine, its = FORK.Pipe()
    process = FORK.Process(target=target, args=(*arguments, its))
    process.start()
    its.close()
    return process, mine


def said(target, *arguments):
    """What a function sends from a process of its own."""
    process, pipe = started(target, *arguments)
    answer = pipe.recv()
    process.join()
    return answer


def test_killed_at_any_moment(name, path):
    writer.write(path, name, 0)
    want = entries(path)
    begun = time.perf_counter()
    for value in range(5):
        writer.write(path, name, value)
    span = (time.perf_counter() - begun) / 5
    random = np.random.default_rng(0)
    seen, left = set(), 0
    for _ in range(KILLS.get(name, FEWER)):
        process, pipe = started(writer.write_for_ever, path, name)
        pipe.recv()
        time.sleep(random.random() * 4 * span)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        pipe.close()
        seen.add(writer.value_of(path, name))
        left += entries(path) != want
    writer.write(path, name, 7)
    assert writer.value_of(path, name) == 7
    assert entries(path) == want
    assert len(seen) > 1
    assert left, "no writer was killed in the middle: this test tests nothing"


def test_every_read_is_whole_while_another_process_writes(name, path):
    process, pipe = started(writer.write_for_ever, path, name)
    pipe.recv()
    try:
        seen, begun = set(), time.monotonic()
        while len(seen) < 10 and time.monotonic() - begun < 10:
            try:
                seen.add(writer.value_of(path, name))
            except FormatError:  # a folder may be replaced between two of its files
                assert path.is_dir()
    finally:
        process.kill()
        process.join()
    assert len(seen) > 1


@pytest.fixture
def open_to_all():
    """A folder that other users reach too; pytest's own are closed to them."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        (Path(folder) / "only").mkdir()
        yield Path(folder) / "only"


@pytest.mark.parametrize("share", [0.02, 0.5, 0.98])
def test_no_room(name, path, share):
    writer.write(path, name, 1)
    want = entries(path)
    largest = max(entry.stat().st_size for entry in [path, *path.rglob("*")] if entry.is_file())
    message = said(writer.write_without_room, path, name, int(largest * share))
    assert message.startswith("StoreError: cannot write")
    assert writer.value_of(path, name) == 1
    assert entries(path) == want


def test_a_folder_that_is_read_only(name, open_to_all):
    path = open_to_all / f"file{'' if writer.FORMATS[name].folder else '.bin'}"
    writer.write(path, name, 1)
    writer.write(path.with_name("elsewhere" + path.suffix), name, 1)
    want = entries(path)
    path.parent.chmod(0o555)
    if path.is_dir():
        path.chmod(0o555)
    try:
        message = said(writer.write_without_permission, path, name)
    finally:
        path.parent.chmod(0o755)
        if path.is_dir():
            path.chmod(0o755)
    assert message.startswith("StoreError: cannot write")
    assert "ermission denied" in message
    assert writer.value_of(path, name) == 1
    assert entries(path) == want


def test_who_has_the_old_file_open_goes_on_reading_it(name, path):
    writer.write(path, name, 1)
    file = next(entry for entry in [path, *sorted(path.rglob("*"))] if entry.is_file())
    old = file.read_bytes()
    with file.open("rb") as reader:
        first = reader.read(100)
        writer.write(path, name, 2)
        assert first + reader.read() == old
    assert writer.value_of(path, name) == 2


@pytest.mark.parametrize("mode", ["r", "r+"])
def test_a_file_that_h5py_holds_locked(mode, tmp_path):
    path = tmp_path / "file.h5"
    Hdf5Store().write(path, {"a": np.zeros(3)}, {})
    with h5py.File(path, mode) as held:
        if mode == "r":  # else it is being changed, and the seal says so
            assert Hdf5Store().read(path).arrays["a"].tolist() == [0, 0, 0]
        Hdf5Store().write(path, {"a": np.ones(3)}, {})
        assert Hdf5Store().read(path).arrays["a"].tolist() == [1, 1, 1]
        assert held["a"][:].tolist() == [0, 0, 0]
        with h5py.File(path, "r") as new:
            assert new["a"][:].tolist() == [1, 1, 1]
    assert Hdf5Store().read(path).arrays["a"].tolist() == [1, 1, 1]


def test_a_store_open_for_reading_meanwhile(tmp_path):
    path = tmp_path / "file.h5"
    Hdf5Store().write(path, {"a": np.zeros(300_000)}, {})
    with Hdf5Store().open(path) as reader:
        Hdf5Store().write(path, {"a": np.ones(300_000)}, {})
        assert not reader.array("a").any()
    assert Hdf5Store().read(path).arrays["a"].all()
