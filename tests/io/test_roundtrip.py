"""Any contents, through any store, bit for bit."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from loratk.io import Contents, Hdf5Store, NpzStore
from loratk.io.names import DTYPES, name_faults
from loratk.testing.store import assert_same

STORES = [Hdf5Store(), NpzStore()]
quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
part = text.filter(lambda part: part not in ("", ".", "..") and "/" not in part)
names = st.lists(part, min_size=1, max_size=3).map("/".join)
some_arrays = hnp.arrays(st.sampled_from(DTYPES), hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))


@st.composite
def contents(draw):
    arrays, strings = {}, {}
    for name, array in draw(st.dictionaries(names, some_arrays, max_size=4)).items():
        if not list(name_faults([*arrays, name], [])):
            arrays[name] = array
    for name, string in draw(st.dictionaries(names, text, max_size=4)).items():
        if not list(name_faults(arrays, [name])):
            strings[name] = string
    return Contents(arrays, strings)


@pytest.mark.parametrize("store", STORES, ids=lambda store: store.name)
@quick
@given(want=contents())
def test_bit_exact(store, want, tmp_path):
    path = tmp_path / "file"
    store.write(path, want.arrays, want.strings)
    assert_same(store.read(path), want)


@pytest.mark.parametrize("store", STORES, ids=lambda store: store.name)
def test_equal_contents_give_equal_bytes(store, tmp_path):
    arrays = {f"g{at}/x": np.arange(at, dtype=np.float32) for at in range(12)}
    strings = {"b": "2", "a/c": "1", "long": "x" * 100_000}
    code = """if True:
        import sys, numpy as np
        from loratk.io import Hdf5Store, NpzStore
        store = {"hdf5": Hdf5Store, "npz": NpzStore}[sys.argv[1]]()
        arrays = {f"g{at}/x": np.arange(at, dtype=">f4") for at in reversed(range(12))}
        store.write(sys.argv[2], arrays, {"long": "x" * 100_000, "a/c": "1", "b": "2"})
    """
    first, second = tmp_path / "first", tmp_path / "second"
    store.write(first, arrays, strings)
    subprocess.run([sys.executable, "-c", code, store.name, str(second)], check=True)
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("store", STORES, ids=lambda store: store.name)
def test_what_is_read_may_be_changed(store, tmp_path):
    store.write(tmp_path / "file", {"a": np.zeros(3)}, {})
    got = store.read(tmp_path / "file").arrays["a"]
    got += 1
    assert got.tolist() == [1, 1, 1]
