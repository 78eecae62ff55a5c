"""Arrays compressed on writing, where it is asked for: smaller, the same to every reader, and with equal bytes for equal contents."""

import zipfile

import h5py
import numpy as np
import pytest

from loratk.errors import ConfigError
from loratk.exchange import AdapterState, formats_of, load_adapter, save_adapter
from loratk.io import Hdf5Store, NpzStore, SafetensorsStore
from loratk.io.hdf5 import CHUNK, SMALLEST
from loratk.plugins import default_registry
from loratk.testing.store import check_store

STORES = [Hdf5Store, NpzStore]
ARRAYS = {
    "halves": np.random.default_rng(0).standard_normal((700, 900)).astype(np.float16).astype(np.float32),
    "long": np.arange(1 << 20, dtype=">i4"),
    "wide": np.zeros((1, 3 << 18)),
    "small": np.arange(3),
    "scalar": np.array(2.5),
    "empty": np.zeros((0, 70_000)),
}


@pytest.fixture(params=STORES, ids=lambda store: store.name)
def store(request):
    return request.param(compression=1)


def test_the_contract_holds(store, tmp_path):
    check_store(store, tmp_path)


def test_smaller_and_the_same(store, tmp_path):
    type(store)().write(tmp_path / "plain", ARRAYS, {"a": "b"})
    store.write(tmp_path / "packed", ARRAYS, {"a": "b"})
    assert (tmp_path / "packed").stat().st_size < 0.4 * (tmp_path / "plain").stat().st_size
    got = type(store)().read(tmp_path / "packed")
    assert got.strings == {"a": "b"}
    for name, want in ARRAYS.items():
        assert got.arrays[name].dtype == want.dtype.newbyteorder("=")
        np.testing.assert_array_equal(got.arrays[name], want, strict=False)


def test_equal_contents_give_equal_bytes(store, tmp_path):
    for name in "ab":
        store.write(tmp_path / name, ARRAYS, {})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_how_it_lies_in_the_file(tmp_path):
    Hdf5Store(compression=4).write(tmp_path / "a.h5", ARRAYS, {})
    with h5py.File(tmp_path / "a.h5") as file:
        for name, want in ARRAYS.items():
            packed = want.nbytes >= SMALLEST
            assert (file[name].compression, file[name].compression_opts, file[name].shuffle) == (
                ("gzip", 4, True) if packed else (None, None, False)
            )
            assert not packed or np.prod(file[name].chunks) * want.itemsize <= CHUNK
            np.testing.assert_array_equal(file[name][()], want)
    NpzStore(compression=9).write(tmp_path / "a.npz", ARRAYS, {})
    with zipfile.ZipFile(tmp_path / "a.npz") as archive:
        assert {info.compress_type for info in archive.infolist() if info.filename.endswith(".npy")} == {zipfile.ZIP_DEFLATED}
    with np.load(tmp_path / "a.npz") as archive:
        np.testing.assert_array_equal(archive["halves"], ARRAYS["halves"])


@pytest.mark.parametrize("value", [-1, 10, "x", "", "10", 1.5, True, None])
def test_levels_that_are_none(store, value):
    with pytest.raises(ConfigError, match="compression must be a whole number from 0"):
        type(store)(compression=value)


def test_as_an_option_of_the_format(tmp_path):
    formats = formats_of(default_registry())
    for name in ("hdf5", "npz"):
        assert formats[name].options["compression"].default == 0
    assert not formats["safetensors"].options
    assert not SafetensorsStore.options
    a, b = np.zeros((600, 8), np.float32), np.zeros((8, 600), np.float32)
    record = {"method": "lora", "layer_type": "linear", "shape": [600, 600], "rank": 8, "alpha": 8.0, "scaling": 1.0}
    state = AdapterState("mine", {}, {"m.lora_A": a, "m.lora_B": b}, {"m": record})
    for suffix in ("h5", "npz"):
        plain, packed = tmp_path / f"plain.{suffix}", tmp_path / f"packed.{suffix}"
        save_adapter(plain, state)
        save_adapter(packed, state, options={"compression": "6"})
        assert packed.stat().st_size < plain.stat().st_size
        (got,) = load_adapter(packed).states
        np.testing.assert_array_equal(got.tensors["m.lora_A"], a)
        with pytest.raises(ConfigError, match="has no option 'level'; its options: 'compression'"):
            save_adapter(plain, state, options={"level": 6})
