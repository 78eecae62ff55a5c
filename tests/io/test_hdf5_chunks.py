"""Chunks unpacked without HDF5's filters: the same as HDF5 gives, and damage is an error."""

import itertools
import struct
import subprocess
import sys
import zlib

import h5py
import numpy as np
import pytest

from loratk.errors import FormatError
from loratk.io import Hdf5Store

SHAPES = [((7,), (3,)), ((10, 6), (4, 4)), ((5, 6, 7), (5, 2, 3)), ((64,), (64,)), ((3, 1000), (2, 999)), ((1, 1), (1, 1))]
PACKED = {"chunks": (40, 3), "compression": "gzip", "shuffle": True, "fletcher32": True}


def drawn(shape, dtype):
    random = np.random.default_rng(0)
    return random.integers(0, 2, shape).astype(dtype) if dtype == "?" else (random.standard_normal(shape) * 50).astype(dtype)


@pytest.mark.parametrize("dtype", ["f4", "<f2", ">f8", "i1", ">i2", "?", "u8"])
@pytest.mark.parametrize("libver", ["earliest", "latest"])
def test_all_filters_and_shapes(dtype, libver, tmp_path):
    want, levels = {}, (None, 0, 9) if libver == "earliest" else (None, 9)
    with h5py.File(tmp_path / "x", "w", libver=libver) as file:
        for (shape, chunks), gzip, shuffle, sums in itertools.product(SHAPES, levels, (False, True), (False, True)):
            name = f"{'-'.join(map(str, shape))}/{gzip}{shuffle:d}{sums:d}"
            want[name] = drawn(shape, dtype)
            more = {} if gzip is None else {"compression": "gzip", "compression_opts": gzip}
            chunks = chunks if libver == "earliest" else shape
            file.create_dataset(name, data=want[name], chunks=chunks, shuffle=shuffle, fletcher32=sums, **more)
    got = Hdf5Store().read(tmp_path / "x").arrays
    for name, array in got.items():
        np.testing.assert_array_equal(array, want[name])
        assert array.dtype == np.dtype(dtype).newbyteorder("=")
        array[...] = 0
    assert len(got) == len(want)


def test_chunks_that_were_never_written(tmp_path):
    with h5py.File(tmp_path / "x", "w") as file:
        data = file.create_dataset("a", (10, 10), "f4", chunks=(3, 3), fillvalue=7)
        data[0, 0], data[9, 9] = 1, 2
    with pytest.raises(FormatError, match="it has 2 of its 16 chunks: its writer did not finish"):
        Hdf5Store().read(tmp_path / "x")


def test_a_chunk_that_was_stored_without_its_filters(tmp_path):
    want = np.arange(120, dtype="<f4").reshape(40, 3)
    with h5py.File(tmp_path / "x", "w") as file:
        file.create_dataset("a", (40, 3), "<f4", **PACKED).id.write_direct_chunk((0, 0), want.tobytes(), filter_mask=7)
    np.testing.assert_array_equal(Hdf5Store().read(tmp_path / "x").arrays["a"], want)


READ = """
import sys
import zlib
from loratk.errors import FormatError
from loratk.io import Hdf5Store
try:
    print(Hdf5Store().read(sys.argv[1]).arrays["a"].sum())
except FormatError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("options", "chunk", "said"),
    [
        (PACKED, b"ab", "does not match its checksum"),
        (PACKED, bytes(100), "Error -3 while decompressing"),
        ({"chunks": (40, 3), "fletcher32": True}, bytes(480) + b"\1\0\0\0", "does not match its checksum"),
        ({"chunks": (40, 3), "fletcher32": True}, bytes(8), "has 4 bytes, and should have 480"),
        ({"chunks": (40, 3), "shuffle": True}, bytes(479), "has 479 bytes, and should have 480"),
        ({"chunks": (40, 3)}, bytes(481), "has 481 bytes, and should have 480"),
        ({"chunks": (40, 3), "compression": "gzip"}, b"x\x9c\x03\0\0\0\0\1", "has 0 bytes, and should have 480"),
        ({"chunks": (40, 3), "compression": "gzip"}, zlib.compress(bytes(1 << 24)), "has 485 bytes, and should have 480"),
    ],
)
def test_chunks_of_another_size(options, chunk, said, tmp_path):
    """HDF5's filters read past the end of some, so a process of its own reads them."""
    with h5py.File(tmp_path / "x", "w") as file:
        file.create_dataset("a", (40, 3), "<f4", **options).id.write_direct_chunk((0, 0), chunk)
    run = subprocess.run([sys.executable, "-c", READ, tmp_path / "x"], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (0, "")
    assert said in run.stdout


def test_a_chunk_beyond_the_end_of_the_file(tmp_path):
    with h5py.File(tmp_path / "x", "w") as file:
        data = file.create_dataset("a", data=np.zeros((40, 3), "<f4"), chunks=(40, 3))
        place = data.id.get_chunk_info(0).byte_offset
    whole = (tmp_path / "x").read_bytes()
    (tmp_path / "x").write_bytes(whole.replace(place.to_bytes(8, "little"), (len(whole) - 4).to_bytes(8, "little")))
    with pytest.raises(FormatError, match="lies outside of the file"):
        Hdf5Store().read(tmp_path / "x")


def test_a_chunk_that_belongs_nowhere(tmp_path):
    """Its place must be one of the grid: what nothing is written to would be whatever memory held."""
    with h5py.File(tmp_path / "x", "w") as file:
        file.create_dataset("a", data=np.zeros((40, 3), "<f4"), chunks=(20, 3))
    whole = (tmp_path / "x").read_bytes()
    key = struct.pack("<IIQQQ", 240, 0, 20, 0, 0)
    assert whole.count(key) == 1
    for place in (21, 40):
        (tmp_path / "x").write_bytes(whole.replace(key, struct.pack("<IIQQQ", 240, 0, place, 0, 0)))
        with pytest.raises(FormatError):
            Hdf5Store().read(tmp_path / "x")
