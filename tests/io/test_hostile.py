"""Files made to do harm, in loratk's own layout and in each of its stores: one refusal, soon, in little memory, and nothing else opened."""

import struct
import time
import zipfile
from contextlib import suppress

import numpy as np
import pytest

from loratk.errors import FormatError
from loratk.exchange import AdapterState, Checkpoint, load_adapter, save_adapter
from loratk.io import NpzStore, SafetensorsStore, write_safetensors
from loratk.io.builtin import register_stores
from tests.io.refusing import refused

STORES = {store.name: store for store in register_stores()}
A, B = np.ones((6, 2), np.float32), np.ones((2, 4), np.float32)
AT = "adapters/mine/q"
STRINGS = {
    "format": "loratk-adapter",
    "format_version": "1",
    "adapters/mine/config": "{}",
    f"{AT}/method": "lora",
    f"{AT}/rank": "2",
    f"{AT}/alpha": "4.0",
    f"{AT}/scaling": "2.0",
}
ARRAYS = {f"{AT}/lora_A": A, f"{AT}/lora_B": B}
DEEP = "[" * 100_000


@pytest.fixture(params=STORES.values(), ids=STORES)
def store(request):
    return request.param


LAYOUT = {
    "alpha NaN": ({f"{AT}/alpha": "NaN"}, {}, "alpha must be a finite number, found 'NaN'"),
    "alpha infinite": ({f"{AT}/alpha": "1e999"}, {}, "alpha must be a finite number"),
    "scaling as text": ({f"{AT}/scaling": "two"}, {}, "scaling must be a finite number, found 'two'"),
    "rank 0": ({f"{AT}/rank": "0"}, {}, "rank must be a whole number from 1 up, found 0"),
    "rank negative": ({f"{AT}/rank": "-2"}, {}, "rank must be a whole number from 1 up, found -2"),
    "rank huge": ({f"{AT}/rank": "1" + "0" * 4000}, {}, "lora_A must have shape (d, 1000"),
    "rank beyond all digits": ({f"{AT}/rank": "1" * 5000}, {}, "rank must be a whole number"),
    "r of A is not r of B": ({}, {f"{AT}/lora_B": np.ones((3, 4))}, "lora_B must have shape"),
    "no B": ({}, {f"{AT}/lora_B": None}, "tensor 'lora_B' is missing"),
    "no A": ({}, {f"{AT}/lora_A": None}, "tensor 'lora_A' is missing"),
    "no record": ({}, {"adapters/mine/v/lora_A": A}, "has tensors ('lora_A') but no record"),
    "a shape of another size": ({f"{AT}/shape": "[1152921504606846976, 4]"}, {}, "lora_A must have shape (1152921504606846976, 2)"),
    "groups 0": ({f"{AT}/groups": "0"}, {}, "groups must be a whole number that divides the rank"),
    "a key twice": ({"adapters/mine/config": '{"a": 1, "a": 2}'}, {}, "a key is given twice"),
    "deep JSON": ({"adapters/mine/config": DEEP}, {}, "nested too deeply"),
    "deep JSON in a record": ({f"{AT}/shape": DEEP}, {}, "shape must be two whole numbers"),
    "NaN in JSON": ({"adapters/mine/config": '{"a": NaN}'}, {}, "NaN is not JSON"),
    "metadata that are none": ({"adapters/mine/metadata": '{"a": {}}'}, {}, "metadata must be a dict of strings"),
    "a name that should be escaped": ({}, {"adapters/mine/a%2e/w": A}, "should be written"),
    "values that are not finite": ({}, {f"{AT}/lora_A": np.full((6, 2), np.nan, np.float32)}, "12 values that are NaN or infinite"),
}


@pytest.mark.parametrize(("strings", "arrays", "said"), LAYOUT.values(), ids=LAYOUT.keys())
def test_the_layout(store, strings, arrays, said, tmp_path):
    arrays = {name: array for name, array in (ARRAYS | arrays).items() if array is not None}
    store.write(tmp_path / "x", arrays, STRINGS | strings)
    assert said in refused(tmp_path / "x")


def test_a_name_that_leads_out_is_text_and_no_path(store, tmp_path):
    """An adapter or module may be called anything; it is a name in the file, and never one of a file."""
    name = "../../up\\..\\C:"
    record = {"method": "lora", "rank": 2, "alpha": 2.0, "scaling": 1.0}
    folder = tmp_path / "folder"
    folder.mkdir()
    save_adapter(folder / "x", AdapterState(name, {}, {f"{name}.lora_A": A, f"{name}.lora_B": B}, {name: record}), format=store.name)
    (got,) = load_adapter(folder / "x").states
    assert (got.name, list(got.modules)) == (name, [name])
    assert [path.name for path in folder.iterdir()] == ["x"]
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_thousands_of_adapters(store, tmp_path):
    """Time grows with the file, not with its square."""
    count = 3000 if store.name == "hdf5" else 30_000
    strings = {f"adapters/{at}/config": "{}" for at in range(count)} | {"format": "loratk-adapter", "format_version": "1"}
    store.write(tmp_path / "x", {}, strings)
    begun = time.process_time()
    assert len(load_adapter(tmp_path / "x").states) == count
    assert time.process_time() - begun < 20


# -- safetensors ------------------------------------------------------------------------------------------------------


def test_a_header_of_many_keys_with_one_twice(tmp_path):
    keys = [f'"{at}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}' for at in range(50_000)]
    text = ("{" + ",".join([*keys, keys[0]]) + "}").encode()
    (tmp_path / "x").write_bytes(struct.pack("<Q", len(text)) + text)
    begun = time.process_time()
    with pytest.raises(FormatError, match="the key '0' twice"):
        SafetensorsStore().read(tmp_path / "x")
    assert time.process_time() - begun < 5


@pytest.mark.parametrize("length", [0, 1, 7, 100_000_001, 1 << 32, (1 << 64) - 1, (1 << 63) + 9])
def test_a_header_length_that_is_not_there(length, tmp_path):
    (tmp_path / "x").write_bytes(struct.pack("<Q", length) + b"{}" + bytes(100))
    assert "safetensors" in refused(tmp_path / "x", format="safetensors")


# -- zip --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../up", "/etc/passwd", "a/../../up", "..", ".", "a//b", "\\..\\up", "C:\\up", "a\nb"])
def test_members_are_never_unpacked(name, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    with zipfile.ZipFile(folder / "x", "w") as archive:
        archive.writestr("first.npy", _npy())
        archive.writestr(f"{name}.npy", _npy())
    with suppress(FormatError):  # some are plain names
        NpzStore().read(folder / "x")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
    assert [path.name for path in folder.iterdir()] == ["x"]


def _npy():
    return b"\x93NUMPY\1\0\x46\0{'descr': '<f8', 'fortran_order': False, 'shape': (1,), }        \n" + bytes(8)


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('touch evil')",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (__import__('os'),), }",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (10**9**9,), }",
        "{'descr': 'O', 'fortran_order': False, 'shape': (1,), }",
        "(" * 3000,
        "{'descr': " + "[" * 400 + ", 'fortran_order': False, 'shape': (1,), }",
    ],
)
def test_an_npy_header_is_never_run(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    head = text.encode() + b"\n"
    with zipfile.ZipFile(tmp_path / "x", "w") as archive:
        archive.writestr("a.npy", b"\x93NUMPY\1\0" + struct.pack("<H", len(head)) + head + bytes(8))
    with pytest.raises(FormatError, match=r"'a\.npy'"):
        NpzStore().read(tmp_path / "x")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


# -- the index of a base ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"weight_map": {"a.weight": "../up.safetensors"}}', "must lie beside it"),
        ('{"weight_map": {"a.weight": "/etc/hostname"}}', "must lie beside it"),
        ('{"weight_map": {"a.weight": "folder"}}', "must lie beside it"),
        ('{"weight_map": {"a.weight": "nowhere.safetensors"}}', "must lie beside it"),
        ('{"weight_map": {"a.weight": ""}}', "must lie beside it"),
        ('{"weight_map": {"a.weight": "a\\u0000b"}}', "must lie beside it"),
        ('{"weight_map": {"a.weight": 1}}', "must lie beside it"),
        ('{"weight_map": {"a.weight": [1]}}', "needs a 'weight_map'"),
        ('{"weight_map": {}}', "no file"),
        ('{"weight_map": {"a": "x", "a": "y"}}', "a key is given twice"),
        ('{"weight_map": ' + DEEP, "needs a 'weight_map'"),
        ("[]", "needs a 'weight_map'"),
        ("\xff", "needs a 'weight_map'"),
        ('{"metadata": {}}', "needs a 'weight_map'"),
    ],
)
def test_an_index_that_leads_elsewhere(text, said, tmp_path):
    write_safetensors(tmp_path / "up.safetensors", {"a.weight": np.zeros((2, 2))}, {})
    (tmp_path / "base" / "folder").mkdir(parents=True)
    path = tmp_path / "base" / "model.safetensors.index.json"
    path.write_bytes(text.encode("latin-1"))
    for given in (path, path.parent):
        with pytest.raises(FormatError) as caught:
            Checkpoint(given, STORES)
        assert said in str(caught.value)
        assert "Traceback" not in str(caught.value)
