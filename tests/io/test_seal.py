"""A file cut at any byte, or with any byte changed, is a LoratkError; and only what is asked for is read."""

import subprocess
import sys
import tracemalloc

import numpy as np
import pytest

from loratk.errors import FormatError, LoratkError, StateError
from loratk.io import Hdf5Store, NpzStore
from loratk.io.seal import SealedFile

STORES = [Hdf5Store(), NpzStore()]
ARRAYS = {"m/lora_A": np.arange(6.0).reshape(3, 2), "m/lora_B": np.ones((2, 3), np.float32)}
STRINGS = {"format": "x", "m/rank": "2"}


@pytest.fixture(params=STORES, ids=lambda store: store.name)
def store(request):
    return request.param


@pytest.fixture
def whole(store, tmp_path):
    store.write(tmp_path / "whole", ARRAYS, STRINGS)
    return (tmp_path / "whole").read_bytes()


def test_cut_at_every_byte(store, whole, tmp_path):
    path = tmp_path / "broken"
    ends = {*range(1000), *range(len(whole) - 1000, len(whole)), *range(0, len(whole), 5)}  # HDF5 only compares lengths
    for at in sorted(ends & set(range(len(whole)))):
        path.write_bytes(whole[:at])
        with pytest.raises(LoratkError):
            store.read(path)


def test_flipped_at_every_byte(store, whole, tmp_path):
    path = tmp_path / "broken"
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << at % 8)]) + whole[at + 1 :])
        with pytest.raises(FormatError):
            store.read(path)


def test_parts_exchanged_or_added(store, whole, tmp_path):
    path = tmp_path / "broken"
    for broken in (whole + b"\0", whole + whole, whole[:-64] + b"\0" * 64, whole[len(whole) // 2 :] + whole[: len(whole) // 2]):
        path.write_bytes(broken)
        with pytest.raises(FormatError):
            store.read(path)


def test_flips_in_a_file_of_many_blocks(store, tmp_path):
    path = tmp_path / "big"
    store.write(path, {name: np.random.default_rng(0).random(40_000) for name in "abcd"}, {})
    whole = bytearray(path.read_bytes())
    for at in range(100, len(whole), len(whole) // 40):
        whole[at] ^= 1
        path.write_bytes(whole)
        with pytest.raises(FormatError, match="not as it was written"):
            store.read(path)
        whole[at] ^= 1


@pytest.fixture
def big(store, tmp_path):
    arrays = {f"layer{at}": np.full((100, 2000), at, np.float64) for at in range(10)}
    store.write(tmp_path / "big", arrays, {"text": "here"})
    return tmp_path / "big"


def test_only_the_asked_for_array_is_read(store, big):
    size, one = big.stat().st_size, 100 * 2000 * 8
    with store.open(big) as reader:
        opened = reader._file.bytes_read
        assert opened < size / 4
        assert reader.info("layer7") == ((100, 2000), np.float64)
        assert reader._file.bytes_read == opened
        assert (reader.array("layer7") == 7).all()
        assert reader._file.bytes_read - opened < 2.3 * one  # once for the check, once to load


def test_damage_elsewhere_does_not_matter_to_a_partial_read_but_does_to_the_whole(store, big):
    whole = big.read_bytes()
    at = whole.index(np.full(20, 4.0).tobytes()) + 800_000
    big.write_bytes(whole[:at] + b"\xff" + whole[at + 1 :])
    assert (store.read(big, ["layer7"]).arrays["layer7"] == 7).all()
    with pytest.raises(FormatError, match=r"bytes \d+ to \d+ do not match"):
        store.read(big, ["layer4"])
    with pytest.raises(FormatError, match="do not match their checksum"):
        store.read(big)


def test_a_reader_is_done_when_its_block_ends(store, big):
    with store.open(big) as reader:
        pass
    with pytest.raises(StateError, match="is closed"):
        reader.array("layer1")


def test_errors_of_the_caller_are_not_taken_for_the_files(store, big):
    with pytest.raises(ZeroDivisionError), store.open(big):
        raise ZeroDivisionError


LEFT_OPEN = """
import ctypes, sys
from pathlib import Path
from loratk.errors import LoratkError
from loratk.io import Hdf5Store, NpzStore
from loratk.io.seal import SealedFile
store = {"hdf5": Hdf5Store, "npz": NpzStore}[sys.argv[1]]()
path = Path(sys.argv[2])
cut = path.with_name("cut")
cut.write_bytes(path.read_bytes()[:3000])
kept = []
for _ in range(3):
    try:
        store.read(cut)
    except LoratkError as error:
        kept.append(error)
opened = store.open(path)
kept += [opened, opened.__enter__()]
kept[-1].array("layer3")
ctypes.pythonapi.Py_IncRef(ctypes.py_object(kept))  # never let go of, as by a reference cycle that ends with Python
"""


def test_python_ends_well_with_files_left_open_and_errors_kept(store, big):
    run = subprocess.run([sys.executable, "-c", LEFT_OPEN, store.name, str(big)], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (0, "")


def test_a_read_beyond_the_end_takes_no_memory_for_what_is_not_there(store, whole, tmp_path):
    with SealedFile(tmp_path / "whole") as file:
        tracemalloc.start()
        assert file.read(1 << 40) == whole
        assert file.read(1 << 40) == b""
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
        tracemalloc.stop()
        file.seek(3)
        assert (file.read(2), file.read(0), file.read()) == (whole[3:5], b"", whole[5:])
