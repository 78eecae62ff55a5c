import errno
import os
import platform
import signal
import stat
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest

from loratk.errors import LoratkError, StoreError
from loratk.io import Hdf5Store, NpzStore, atomic, atomic_file, leavings

STORES = [Hdf5Store(), NpzStore()]


@pytest.fixture
def target(tmp_path):
    path = tmp_path / "file.bin"
    path.write_bytes(b"old")
    return path


def only(path):
    return [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_replaces_and_leaves_nothing_beside(target):
    with atomic_file(target) as file:
        file.write(b"new")
        assert target.read_bytes() == b"old"
    assert target.read_bytes() == b"new"
    assert only(target)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_exception_keeps_the_old_file(target, error):
    def write():
        with atomic_file(target) as file:
            file.write(b"half")
            raise error

    with pytest.raises(error):
        write()
    assert target.read_bytes() == b"old"
    assert only(target)


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk_is_a_store_error(target, monkeypatch, step):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, step, full)
    with pytest.raises(StoreError, match=r"file\.bin.*No space left on device.*untouched"), atomic_file(target) as file:
        file.write(b"new")
    assert target.read_bytes() == b"old"
    assert only(target)


FULL_DISK = """
import resource, signal, sys
import numpy as np
from pathlib import Path
from loratk.errors import StoreError
from loratk.io import Hdf5Store, NpzStore
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
path, limit = Path(sys.argv[1]), int(sys.argv[2])
store = Hdf5Store() if path.suffix == ".h5" else NpzStore()
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    store.write(path, {"a": np.ones(50000), "b": np.ones(50000)}, {"c": "d"})
except StoreError as error:
    print("StoreError:", error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="limits of file sizes are POSIX")
@pytest.mark.parametrize("store", STORES, ids=lambda store: store.name)
@pytest.mark.parametrize("limit", [100, 5000, 450_000, 800_200])
def test_no_room_while_the_library_writes(store, limit, tmp_path):
    path = tmp_path / f"file{store.suffixes[0]}"
    store.write(path, {"old": np.arange(3)}, {})
    run = subprocess.run([sys.executable, "-c", FULL_DISK, str(path), str(limit)], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.startswith("StoreError: cannot write")
    assert store.read(path).arrays["old"].tolist() == [0, 1, 2]
    assert only(path)


ENDLESS = """
import sys
import numpy as np
from pathlib import Path
from loratk.io import Hdf5Store, NpzStore
path = Path(sys.argv[1])
store = Hdf5Store() if path.suffix == ".h5" else NpzStore()
print("ready", flush=True)
value = 0
while True:
    value += 1
    store.write(path, {"a": np.full(300000, value), "b": np.full(300000, value)}, {})
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals")
@pytest.mark.parametrize("store", STORES, ids=lambda store: store.name)
def test_a_killed_writer_leaves_a_whole_file_and_its_leavings_go_with_the_next_write(store, tmp_path):
    path = tmp_path / f"file{store.suffixes[0]}"
    store.write(path, {"a": np.zeros(1), "b": np.zeros(1)}, {})
    for pause in (0.01, 0.023, 0.05):
        with subprocess.Popen([sys.executable, "-c", ENDLESS, str(path)], stdout=subprocess.PIPE) as writer:
            writer.stdout.readline()
            time.sleep(pause)
            writer.send_signal(signal.SIGKILL)
        got = store.read(path).arrays
        assert got["a"].tobytes() == got["b"].tobytes()
    store.write(path, {}, {})
    assert only(path)


HOLDING = """
import sys
from pathlib import Path
from loratk.io import atomic_file
with atomic_file(Path(sys.argv[1])) as file:
    print("ready", flush=True)
    sys.stdin.read()
    file.write(b"held")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there, leavings are kept for a day")
def test_leavings_go_and_files_in_use_stay(target):
    prefix = f".file.bin.{zlib.crc32(b'file.bin'):08x}-"
    machine = f"{zlib.crc32(platform.node().encode()):08x}"
    names = {
        f"{prefix}{machine}-{os.getppid()}-0.loratk-tmp": False,  # the number of a killed writer may be another process's by now
        f"{prefix}{machine}-{os.getpid()}-77777.loratk-tmp": False,
        f"{prefix}00000000-1-0.loratk-tmp": True,  # of another machine
        f"{prefix}00000000-1-1.loratk-tmp": False,  # the same, but not written to for two days
        f".other.{machine}-1-0.loratk-tmp": True,
    }
    for name in names:
        (target.parent / name).touch()
    old = time.time() - 2 * 86400
    os.utime(target.with_name(f"{prefix}00000000-1-1.loratk-tmp"), (old, old))
    with subprocess.Popen([sys.executable, "-c", HOLDING, str(target)], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
        writer.stdout.readline()
        with atomic_file(target) as first, atomic_file(target) as second:  # neither removes another's
            first.write(b"first")
            second.write(b"second")
        got = {name: (target.parent / name).exists() for name in names}
        assert got == names
        assert target.read_bytes() == b"first"
        writer.stdin.close()
        assert writer.wait() == 0
    assert target.read_bytes() == b"held"


@pytest.mark.skipif(sys.platform == "win32", reason="no locks of this kind")
def test_a_file_taken_for_a_leaving_before_it_was_marked_is_made_again(target, monkeypatch):
    """What another process may do in the moment between making the file and locking it."""
    real, tries = atomic.claim, iter([True, False])

    def claim(file):
        if next(tries):
            leavings.remove_if_abandoned(Path(file.name), here=True)
        return real(file)

    monkeypatch.setattr(atomic, "claim", claim)
    with atomic_file(target) as file:
        file.write(b"new")
    assert target.read_bytes() == b"new"
    assert only(target)


MANY = """
import sys
from pathlib import Path
from loratk.io import atomic_file
for count in range(150):
    with atomic_file(Path(sys.argv[1])) as file:
        file.write(sys.argv[2].encode() * 10000)
"""


def test_writers_of_one_file_do_not_harm_each_other(target):
    writers = [subprocess.Popen([sys.executable, "-c", MANY, str(target), letter]) for letter in "ab"]
    assert [writer.wait() for writer in writers] == [0, 0]
    assert target.read_bytes() in (b"a" * 10000, b"b" * 10000)
    assert only(target)


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
def test_permissions_are_kept(target):
    target.chmod(0o640)
    with atomic_file(target) as file:
        file.write(b"new")
    assert stat.S_IMODE(target.stat().st_mode) == 0o640


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_a_link_is_followed(target):
    link = target.with_name("link")
    link.symlink_to(target)
    with atomic_file(link) as file:
        file.write(b"new")
    assert link.is_symlink()
    assert target.read_bytes() == b"new"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder(target):
    target.parent.chmod(0o500)
    try:
        with pytest.raises(StoreError, match=r"Permission denied.*untouched"), atomic_file(target):
            pass
    finally:
        target.parent.chmod(0o700)


def test_a_folder_that_may_not_be_looked_into(tmp_path, monkeypatch):
    real = Path.stat

    def stat(self, **options):
        if self.name == "file":
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(self, **options)

    monkeypatch.setattr(Path, "stat", stat)
    with pytest.raises(StoreError, match="Permission denied"), atomic_file(tmp_path / "file"):
        pass


def test_a_folder_or_a_missing_one_as_target(tmp_path):
    with pytest.raises(StoreError, match="is a folder"), atomic_file(tmp_path):
        pass
    with pytest.raises(StoreError, match=r"there is no folder .*nowhere.*make it"), atomic_file(tmp_path / "nowhere" / "file"):
        pass


def test_a_very_long_name(tmp_path):
    path = tmp_path / ("ö" * 120)
    with atomic_file(path) as file:
        file.write(b"new")
    assert only(path)


def test_errors_of_the_library_pass_through(target):
    with pytest.raises(LoratkError, match="mine"), atomic_file(target):
        raise StoreError("mine")
