"""Sparse files of 10 GB: an adapter in one costs itself, not the file. And weights as views on a memory map."""

import json
import os
import struct
import subprocess
import sys
import tracemalloc
import zipfile

import h5py
import numpy as np
import pytest

from loratk.errors import FormatError, StateError
from loratk.exchange import AdapterState, Checkpoint, save_adapter
from loratk.io import NpzStore, SafetensorsStore, open_safetensors, write_safetensors
from loratk.io.bfloat16 import to_bits, to_float32

SIZE = 10 << 30
ZEROS = bytes(1 << 20)
A, B = np.arange(12, dtype=np.float32).reshape(6, 2), np.ones((2, 4), np.float32)
RECORD = {"method": "lora", "layer_type": "linear", "shape": [6, 4], "rank": 2, "alpha": 4.0, "scaling": 2.0}
STATE = AdapterState("mine", {}, {"layers.0.lora_A": A, "layers.0.lora_B": B}, {"layers.0": RECORD})
WEIGHT = "model.layers.0.weight"


@pytest.fixture
def sparse(tmp_path):
    """A folder where files may have holes."""
    path = tmp_path / "holes"
    with path.open("wb") as file:
        file.truncate(1 << 30)
    if os.name == "nt" or path.stat().st_blocks * 512 > 1 << 20:
        pytest.skip("this file system has no sparse files")
    path.unlink()
    return tmp_path


def safetensors(path):
    save_adapter(path, STATE, format="safetensors")
    whole = path.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header, data = json.loads(whole[8 : 8 + length]), whole[8 + length :]
    header[WEIGHT] = {"dtype": "F32", "shape": [SIZE // 4096, 1024], "data_offsets": [len(data), len(data) + SIZE]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + data)
        file.truncate(8 + len(text) + len(data) + SIZE)


def hdf5(path):
    save_adapter(path, STATE, format="hdf5")
    with h5py.File(path, "r+") as file:
        del file.attrs["__loratk_seal__"]
        layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        layout.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        layout.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        h5py.h5d.create(file.id, WEIGHT.encode(), h5py.h5t.IEEE_F32LE, h5py.h5s.create_simple((SIZE // 4096, 1024)), layout)


class Holes:
    """A file for zipfile, which skips what is zero."""

    def __init__(self, file):
        self._file = file

    def write(self, data):
        if data is ZEROS:
            self._file.seek(len(data), os.SEEK_CUR)
        else:
            self._file.write(data)
        return len(data)

    def __getattr__(self, name):
        return getattr(self._file, name)


def npz(path):
    store = NpzStore()
    save_adapter(path, STATE, format="npz")
    contents = store.read(path)
    record = {"format": "loratk-npz", "format_version": 1, "strings": contents.strings}
    with path.open("wb") as file, zipfile.ZipFile(Holes(file), "w") as archive:
        archive.writestr("__loratk__.json", json.dumps(record))
        for name, array in contents.arrays.items():
            with archive.open(f"{name}.npy", "w") as member:
                np.lib.format.write_array(member, array)
        with pytest.MonkeyPatch.context() as patch, archive.open(f"{WEIGHT}.npy", "w", force_zip64=True) as member:
            np.lib.format.write_array_header_1_0(member, {"descr": "<f4", "fortran_order": False, "shape": (SIZE // 4096, 1024)})
            patch.setattr(zipfile, "crc32", lambda data, value=0: value)  # nobody reads it
            for _ in range(SIZE >> 20):
                member.write(ZEROS)


MAKERS = [safetensors, hdf5, npz]

MEASURED = """
import resource, sys, time, tracemalloc
from pathlib import Path
from loratk.exchange import load_adapter


def peak():  # the system's own count begins with what the process had that started this one
    status = Path("/proc/self/status")
    if status.exists():
        return next(int(line.split()[1]) << 10 for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


small, large = sys.argv[1:]
load_adapter(small)  # imports are not what is measured
before, begun = peak(), time.process_time()
tracemalloc.start()
(state,) = load_adapter(large).states
print(tracemalloc.get_traced_memory()[1], peak() - before, time.process_time() - begun)
print(state.tensors["layers.0.lora_A"].sum(), state.tensors["layers.0.lora_B"].sum())
"""


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
def test_the_adapter_in_a_large_file_costs_itself(make, sparse):
    make(sparse / "large")
    assert (sparse / "large").stat().st_size > SIZE
    save_adapter(sparse / "small", STATE, format=make.__name__)
    run = subprocess.run([sys.executable, "-c", MEASURED, "small", "large"], cwd=sparse, capture_output=True, text=True, check=False)
    assert run.stderr == ""
    traced, peak, seconds, *sums = map(float, run.stdout.split())
    assert sums == [A.sum(), B.sum()]
    assert traced < 1 << 20
    assert peak < 16 << 20
    assert seconds < 2


def base(path):
    """Weights as torch has them, of which one is large."""
    header = {"large.weight": {"dtype": "F32", "shape": [SIZE // 4096, 1024], "data_offsets": [0, SIZE]}}
    header["small.weight"] = {"dtype": "F32", "shape": [2, 3], "data_offsets": [SIZE, SIZE + 24]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.seek(SIZE, os.SEEK_CUR)
        file.write(np.arange(6, dtype=np.float32).tobytes())


def test_one_weight_of_a_large_base_costs_itself(sparse):
    path = sparse / "base.safetensors"
    base(path)
    tracemalloc.start()
    with Checkpoint(path, {"safetensors": SafetensorsStore()}) as opened:
        assert opened.shape("large") == (SIZE // 4096, 1024)
        assert opened.weight("small").tolist() == [[0, 3], [1, 4], [2, 5]]
    with open_safetensors(path) as reader:
        large = reader.view("large.weight")
    assert large[-1].sum() == 0
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


ARRAYS = {
    "f32": np.arange(12, dtype=np.float32).reshape(3, 4),
    "f64": np.array(2.5),
    "i8": np.arange(5, dtype=np.int8),
    "bool": np.array([True, False]),
    "bf16": to_float32(to_bits(np.linspace(-1, 1, 6, dtype=np.float32))),
    "empty": np.zeros((0, 3), np.float16),
}


def test_views_are_the_arrays_and_read_only(tmp_path):
    write_safetensors(tmp_path / "x", ARRAYS, {}, bfloat16={"bf16"})
    with open_safetensors(tmp_path / "x") as reader:
        for name, want in ARRAYS.items():
            got = reader.view(name)
            np.testing.assert_array_equal(got, want, strict=True)
            assert not got.flags.writeable
            with pytest.raises(ValueError, match="read-only"):
                got[...] = 0
        assert np.shares_memory(reader.view("f32"), reader.view("f32"))
        assert not np.shares_memory(reader.array("f32"), reader.view("f32"))


@pytest.mark.skipif(os.name == "nt", reason="there, a file that is mapped cannot be replaced")
def test_a_view_outlives_its_reader_and_the_file(tmp_path):
    path = tmp_path / "x"
    write_safetensors(path, ARRAYS, {})
    with open_safetensors(path) as reader:
        view = reader.view("f32")
    write_safetensors(path, {"f32": np.zeros((3, 4), np.float32)}, {})
    np.testing.assert_array_equal(view, ARRAYS["f32"])
    path.unlink()
    np.testing.assert_array_equal(view[1:, ::2], ARRAYS["f32"][1:, ::2])
    with pytest.raises(StateError, match="is closed"):
        reader.view("f32")


def test_a_tensor_that_lies_askew_is_copied(tmp_path):
    header = b'{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,12]}}'
    header += b" " * (5 - len(header) % 8)
    (tmp_path / "x").write_bytes(struct.pack("<Q", len(header)) + header + np.arange(3, dtype=np.float32).tobytes())
    with open_safetensors(tmp_path / "x") as reader:
        view = reader.view("a")
    assert view.flags.aligned
    assert view.tolist() == [0, 1, 2]


def test_a_file_cut_before_it_is_viewed(tmp_path):
    write_safetensors(tmp_path / "x", {"a": np.zeros(1000)}, {})
    with open_safetensors(tmp_path / "x") as reader:
        os.truncate(tmp_path / "x", 500)
        with pytest.raises(FormatError, match="cut short while it was open"):
            reader.view("a")


def test_views_leave_no_file_open(tmp_path):
    """Neither a descriptor nor a map stays once reader and views are gone."""
    path = tmp_path / "x"
    write_safetensors(path, ARRAYS, {})
    with open_safetensors(path) as reader:
        view = reader.view("f32")
    maps = "/proc/self/maps"
    if not os.path.exists(maps):
        pytest.skip("no /proc to look at")
    with open(maps) as file:
        assert str(path) in file.read()
    del view
    with open(maps) as file:
        assert str(path) not in file.read()


def test_a_base_with_the_input_first_is_viewed(tmp_path):
    path = tmp_path / "base.safetensors"
    write_safetensors(path, {"a.weight": ARRAYS["f32"]}, {"format": "np"})
    with Checkpoint(path, {"safetensors": SafetensorsStore()}) as opened:
        weight = opened.weight("a")
    np.testing.assert_array_equal(weight, ARRAYS["f32"])
    assert not weight.flags.writeable
