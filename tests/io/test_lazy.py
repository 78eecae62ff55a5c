"""Arrays that are made while they are written."""

import tracemalloc

import numpy as np
import pytest

from loratk.errors import DtypeError
from loratk.io import Hdf5Store, LazyArrays, NpzStore, SafetensorsStore

STORES = [Hdf5Store(), NpzStore(), SafetensorsStore()]


@pytest.mark.parametrize("store", STORES, ids=lambda store: store.name)
def test_each_array_is_made_once_and_not_kept(store, tmp_path):
    made = []

    def make(name):
        made.append(name)
        return np.full((256, 256), float(name[1:]))

    infos = {f"a{i}": ((256, 256), np.dtype("f8")) for i in range(40)}
    store.write(tmp_path / "warm", LazyArrays({"a0": infos["a0"]}, make), {})
    made.clear()
    tracemalloc.start()
    store.write(tmp_path / "x", LazyArrays(infos, make), {"note": "kept"})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sorted(made) == sorted(infos)
    assert peak < 6 * (1 << 19)
    contents = store.read(tmp_path / "x")
    assert contents.strings == {"note": "kept"}
    assert all((contents.arrays[name] == float(name[1:])).all() for name in infos)


@pytest.mark.parametrize("store", STORES, ids=lambda store: store.name)
def test_an_error_while_an_array_is_made_leaves_the_old_file(store, tmp_path):
    (tmp_path / "x").write_bytes(b"mine")

    def make(name):
        raise RuntimeError(name)

    with pytest.raises(RuntimeError, match="a"):
        store.write(tmp_path / "x", LazyArrays({"a": ((2,), np.dtype("f8"))}, make), {})
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert (tmp_path / "x").read_bytes() == b"mine"


def test_what_cannot_be_stored_is_known_before_anything_is_made(tmp_path):
    lazy = LazyArrays({"a": ((2,), np.dtype("c16"))}, lambda name: pytest.fail("it was made"))
    with pytest.raises(DtypeError, match="'a' has the complex dtype"):
        Hdf5Store().write(tmp_path / "x", lazy, {})
    assert list(tmp_path.iterdir()) == []


def test_it_is_a_mapping():
    lazy = LazyArrays({"a": ((2,), np.dtype("f8"))}, lambda name: np.zeros(2))
    assert (list(lazy), len(lazy), "a" in lazy, "b" in lazy) == (["a"], 1, True, False)
    with pytest.raises(KeyError):
        lazy["b"]
