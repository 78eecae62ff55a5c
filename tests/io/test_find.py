import numpy as np
import pytest

from loratk.errors import ConfigError, FormatError, StoreError, UnknownNameError
from loratk.io import Hdf5Store, NpzStore, find_store

STORES = {"hdf5": Hdf5Store(), "npz": NpzStore()}


class Lora(Hdf5Store):
    name, suffixes = "lora", (".lora.h5",)


@pytest.mark.parametrize("store", STORES.values(), ids=STORES)
def test_reading_goes_by_content_whatever_the_suffix(store, tmp_path):
    path = tmp_path / "file.txt"
    store.write(path, {"a": np.zeros(2)}, {})
    assert find_store(path, STORES) is store


def test_archives_of_numpy_are_recognised(tmp_path):
    np.savez(tmp_path / "some.npz", a=np.zeros(2))
    np.savez(tmp_path / "none.npz")
    assert find_store(tmp_path / "some.npz", STORES) is STORES["npz"]
    assert find_store(tmp_path / "none.npz", STORES) is STORES["npz"]


@pytest.mark.parametrize(("name", "want"), [("a.h5", "hdf5"), ("A.HDF5", "hdf5"), ("b.x.npz", "npz")])
def test_writing_goes_by_suffix(name, want):
    assert find_store(name, STORES, for_writing=True) is STORES[want]


def test_the_longest_suffix_wins():
    assert find_store("x.lora.h5", {**STORES, "lora": Lora()}, for_writing=True).name == "lora"
    assert find_store("x.h5", {**STORES, "lora": Lora()}, for_writing=True).name == "hdf5"


def test_where_two_recognise_a_file_its_suffix_decides(tmp_path):
    stores = {**STORES, "lora": Lora()}
    for name in ("x.lora.h5", "x.h5", "x"):
        STORES["hdf5"].write(tmp_path / name, {}, {})
    assert find_store(tmp_path / "x.lora.h5", stores).name == "lora"
    assert find_store(tmp_path / "x.h5", stores).name == "hdf5"
    with pytest.raises(ConfigError, match="'hdf5', 'lora' all recognise it; name one"):
        find_store(tmp_path / "x", stores)


def test_a_name_settles_it():
    assert find_store("nothing.txt", STORES, "npz") is STORES["npz"]
    with pytest.raises(UnknownNameError, match="no store named 'zip'; there are 'hdf5', 'npz'"):
        find_store("nothing.txt", STORES, "zip")


def test_an_unknown_or_shared_suffix():
    with pytest.raises(ConfigError, match=r"'\.txt'. Known are \.h5 \(hdf5\), \.hdf5 \(hdf5\), \.npz \(npz\)"):
        find_store("a.txt", STORES, for_writing=True)
    with pytest.raises(ConfigError, match="'hdf5', 'other' all use this suffix"):
        find_store("a.h5", {"hdf5": Hdf5Store(), "other": Hdf5Store()}, for_writing=True)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"GGUF\3\0\0\0", "a GGUF file"),
        (b"\x10\0\0\0\0\0\0\0{}              ", "safetensors"),
        (b"\x80\x04\x95", "pickle, which loratk never loads"),
        (b"PK\3\4" + b"\0" * 40, "a zip archive that is no npz"),
        (b"\x93NUMPY\1\0", "a single .npy array"),
        (b'{"a": 1}', "JSON"),
        (b"\x89HDF\r\r\n\n", r"begins with the bytes b'\x89HDF"),
    ],
)
def test_a_file_that_nothing_recognises_is_described(content, said, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(FormatError) as caught:
        find_store(path, STORES)
    assert said in str(caught.value)
    assert "'hdf5', 'npz' were asked" in str(caught.value)


def test_no_file_and_a_folder(tmp_path):
    with pytest.raises(StoreError, match=r"nowhere.*check the path"):
        find_store(tmp_path / "nowhere", STORES)
    with pytest.raises(StoreError, match="is a folder"):
        find_store(tmp_path, STORES)
