"""Files made to do harm, in loratk's own layout and in each of its stores: one refusal, soon, in little memory, and nothing else opened."""

import os
import re
import struct
import subprocess
import sys
import time
import tracemalloc
import zipfile
from contextlib import suppress

import h5py
import numpy as np
import pytest

from loratk.errors import FormatError, LoratkError
from loratk.exchange import AdapterState, Checkpoint, load_adapter, save_adapter
from loratk.io import Hdf5Store, NpzStore, SafetensorsStore, write_safetensors
from loratk.io.builtin import register_stores
from loratk.io.hdf5_headers import messages
from loratk.io.hdf5_strings import in_attribute
from loratk.io.seal import SealedFile, append_seal
from loratk.plugins import default_registry

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


def refused(path, format=None):
    """What a file is refused with; in two seconds and 4 MiB at most."""
    registry = default_registry()  # imports are not what is measured
    begun = time.process_time()
    tracemalloc.start()
    try:
        with pytest.raises(FormatError) as caught:
            load_adapter(path, format=format, registry=registry)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert time.process_time() - begun < 2
    assert peak < 4 << 20
    return str(caught.value)


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


# -- HDF5 -------------------------------------------------------------------------------------------------------------


def _elsewhere(file, pipe):
    file["x"] = h5py.ExternalLink(str(pipe), "/a")


def _soft(file, pipe):
    file["x"] = h5py.SoftLink("/y")
    file["y"] = h5py.ExternalLink(str(pipe), "/a")


def _storage(file, pipe):
    file.create_dataset("x", (3,), "f8", external=[(str(pipe), 0, 24)])


def _virtual(file, pipe):
    layout = h5py.VirtualLayout((3,), "f8")
    layout[:] = h5py.VirtualSource(str(pipe), "a", (3,))
    file.create_virtual_dataset("x", layout)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
@pytest.mark.parametrize("build", [_elsewhere, _soft, _storage, _virtual], ids=lambda build: build.__name__)
def test_what_lies_elsewhere_is_never_opened(build, tmp_path):
    """It is a pipe without a writer: to open it would hang."""
    os.mkfifo(tmp_path / "pipe")
    with h5py.File(tmp_path / "x", "w") as file:
        file.attrs.update(STRINGS)
        build(file, tmp_path / "pipe")
    assert "'x' " in refused(tmp_path / "x", format="hdf5")


def test_many_names_of_one_dataset(tmp_path):
    with h5py.File(tmp_path / "x", "w") as file:
        file["a"] = np.zeros(1 << 18)
        for at in range(1200):
            file[f"b{at}"] = file["a"]
    assert "with all its names it declares" in refused(tmp_path / "x", format="hdf5")


def test_many_small_shape_bombs(tmp_path):
    with h5py.File(tmp_path / "x", "w") as file:
        for at in range(3):
            file.create_dataset(f"a{at}", (100 << 20,), "u1", chunks=(1 << 20,), compression="gzip")[0] = 1
    message = refused(tmp_path / "x", format="hdf5")
    assert "with all its names it declares" in message


TEXT = "a string that can be found in the file" * 3


def _with_text(path, where):
    with h5py.File(path, "w") as file:
        file.attrs["__loratk_seal__"] = "1"
        item = file.create_group("group") if where == "group" else file.create_dataset("a", data=np.zeros(3)) if where == "array" else file
        if where == "dataset":
            file["text"] = TEXT
        elif where in ("compact dataset", "dataset of a named type"):
            layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            if where == "compact dataset":
                layout.set_layout(h5py.h5d.COMPACT)
            file["type"] = h5py.string_dtype()
            kind = file["type"].id if "named" in where else h5py.h5t.py_create(h5py.string_dtype(), logical=True)
            made = h5py.Dataset(h5py.h5d.create(file.id, b"text", kind, h5py.h5s.create(h5py.h5s.SCALAR), layout))
            made[()] = TEXT
        elif where == "attribute of a named type":
            file["type"] = h5py.string_dtype()
            file.attrs.create("text", TEXT, dtype=file["type"])
        else:
            item.attrs["sha256"] = TEXT
    return path.read_bytes()


@pytest.mark.parametrize("sealed", [False, True])
@pytest.mark.parametrize(
    "where",
    ["root", "group", "array", "dataset", "compact dataset", "dataset of a named type", "attribute of a named type"],
)
def test_a_string_that_claims_gigabytes(sealed, where, tmp_path):
    """HDF5 would take and clear as much memory before it looks for the string."""
    whole = _with_text(tmp_path / "x", where)
    heap = struct.pack("<Q", whole.index(b"GCOL"))
    descriptor = struct.pack("<I", len(TEXT)) + heap
    assert whole.count(descriptor) == 1
    whole = whole.replace(descriptor, b"\xf0\xff\xff\xff" + heap)
    with (tmp_path / "x").open("w+b") as file:
        file.write(whole if sealed else whole.replace(b"__loratk_seal__", b"__loratk_other_"))
        if sealed:
            append_seal(file)
    assert "announces a string of 4294967280 bytes" in refused(tmp_path / "x", format="hdf5")


@pytest.mark.parametrize("where", ["root", "group", "array", "dataset", "compact dataset"])
def test_letters_that_claim_gigabytes(where, tmp_path):
    """The size of one letter, in the type of a string."""
    whole = _with_text(tmp_path / "x", where)
    text = b"\x19\x01\x01\x00\x10\x00\x00\x00\x10\x00\x00\x00\x01\x00\x00\x00"
    assert text in whole
    (tmp_path / "x").write_bytes(whole.replace(text, text[:12] + struct.pack("<I", 1 << 30)))
    assert re.search(r"announces a string of \d{10,} bytes", refused(tmp_path / "x", format="hdf5"))


@pytest.mark.parametrize("libver", ["earliest", "v108", "latest"])
@pytest.mark.parametrize("more", [0, 5, 200])
def test_lengths_of_strings_are_found_in_every_layout(libver, more, tmp_path):
    """Where a header has several blocks too."""
    with h5py.File(tmp_path / "x", "w", libver=libver, track_order=libver == "latest") as file:
        for at in range(more):
            file.attrs[f"number{at}"] = at
        file.attrs["text"] = TEXT
        address = h5py.h5o.get_info(file["/"].id).addr
    with SealedFile(tmp_path / "x") as file:
        bodies = [in_attribute(file, body) for kind, _, body in messages(file, address) if kind == 0x0C]
    got = [int.from_bytes(found[1][:4], "little") for found in bodies if found]
    if libver == "earliest" or more < 8:
        assert got == [len(TEXT)]
        assert Hdf5Store().read(tmp_path / "x").strings["text"] == TEXT
    else:
        assert "keeps its attributes in a structure" in refused(tmp_path / "x", format="hdf5")


@pytest.mark.parametrize("size", [0, 8, 15, 4096 + 8, 4096 + 24, 1 << 20, 1 << 40, (1 << 64) - 1])
def test_a_heap_of_another_size(size, tmp_path):
    whole = _with_text(tmp_path / "x", "root")
    at = whole.index(b"GCOL")
    (tmp_path / "x").write_bytes(whole[: at + 8] + struct.pack("<Q", size) + whole[at + 16 :])
    with pytest.raises(LoratkError):
        Hdf5Store().read(tmp_path / "x")


def test_a_group_in_itself_and_a_long_chain(tmp_path):
    with h5py.File(tmp_path / "x", "w") as file:
        group = file
        for _ in range(3000):
            group = group.create_group("g")
        group["back"] = file["/"]
    message = refused(tmp_path / "x", format="hdf5")
    assert "is longer than 4096 bytes" in message


def _nodes(whole, kind):
    """Places and levels of the nodes of trees of one kind."""
    at = -1
    while (at := whole.find(b"TREE", at + 1)) >= 0:
        if whole[at + 4] == kind:
            yield at, whole[at + 5]


def _groups(file):
    for at in range(400):
        file.create_group(f"g{at:04d}")


def _chunks(file):
    file.create_dataset("a", (4000,), "f8", chunks=(4,))[:] = 1


def _to_itself(whole, kind, key):
    at = next(at for at, level in _nodes(whole, kind) if level)
    struct.pack_into("<Q", whole, at + 24 + key, at)


def _two_to_one(whole, kind, key):
    at = next(at for at, level in _nodes(whole, kind) if level)
    whole[at + 24 + key + key + 8 : at + 24 + key + key + 16] = whole[at + 24 + key : at + 24 + key + 8]


def _out_of_the_file(whole, kind, key):
    at = next(at for at, level in _nodes(whole, kind) if level)
    struct.pack_into("<Q", whole, at + 24 + key, 1 << 40)


def _leaf_twice(whole, kind, key):
    for at in [at for at, level in _nodes(whole, kind) if not level and whole[at + 6] > 1]:
        whole[at + 24 + key + key + 8 : at + 24 + key + key + 16] = whole[at + 24 + key : at + 24 + key + 8]


def _sibling(whole, kind, key):
    for at, _ in list(_nodes(whole, kind)):
        struct.pack_into("<QQ", whole, at + 8, at, at)


def _free_list(whole, kind, key):
    at = whole.index(b"HEAP")
    _, free, data = struct.unpack_from("<QQQ", whole, at + 8)
    struct.pack_into("<QQ", whole, data + free, free, 16)


TREES = [
    (_groups, 0, 8, _to_itself, "has a tree that is damaged"),
    (_groups, 0, 8, _two_to_one, "has a tree that is damaged"),
    (_groups, 0, 8, _out_of_the_file, "has a tree that leads out of the file"),
    (_groups, 0, 8, _leaf_twice, "has a tree with a leaf reached twice"),
    (_groups, 0, 8, _sibling, None),
    (_groups, 0, 8, _free_list, "keeps its names in a heap that is damaged"),
    (_chunks, 1, 24, _to_itself, "'a' has a tree that is damaged"),
    (_chunks, 1, 24, _two_to_one, "'a' has a tree that is damaged"),
    (_chunks, 1, 24, _out_of_the_file, "'a' has a tree that leads out of the file"),
    (_chunks, 1, 24, _sibling, None),
]
READ = """
import sys
from loratk.errors import FormatError
from loratk.io import Hdf5Store
try:
    print(len(Hdf5Store().read(sys.argv[1]).arrays))
except FormatError as error:
    print(error)
"""


@pytest.mark.parametrize(("build", "kind", "key", "harm", "said"), TREES)
def test_trees_without_end(build, kind, key, harm, said, tmp_path):
    """HDF5 would follow them until the stack or the memory ends, so a process of its own reads them."""
    with h5py.File(tmp_path / "x", "w") as file:
        build(file)
    whole = bytearray((tmp_path / "x").read_bytes())
    harm(whole, kind, key)
    (tmp_path / "x").write_bytes(whole)
    run = subprocess.run([sys.executable, "-c", READ, tmp_path / "x"], capture_output=True, text=True, check=False, timeout=60)
    assert (run.returncode, run.stderr) == (0, "")
    assert said is None or said in run.stdout


def test_large_sound_trees(tmp_path):
    """Trees of several levels, of which parts were taken out again."""
    with h5py.File(tmp_path / "x", "w") as file:
        for at in range(3000):
            file[f"g{at}/a"] = at
        file.create_dataset("chunks", data=np.arange(20_000), chunks=(3,), maxshape=(None,))
        for at in range(0, 3000, 7):
            del file[f"g{at}"]
    got = Hdf5Store().read(tmp_path / "x").arrays
    assert len(got) == 1 + 3000 - len(range(0, 3000, 7))
    assert (got["chunks"] == np.arange(20_000)).all()


def _many_attributes(file):
    file.attrs.update({f"a{at}": at for at in range(9)})


def _many_links(file):
    for at in range(9):
        file.create_group(f"g{at}")


def _in_order(file):
    group = file.create_group("g", track_order=True)
    for at in range(9):
        group.create_group(f"g{at}")


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (_many_attributes, "its root group keeps its attributes in a structure of HDF5's newer layouts"),
        (_many_links, "its root group keeps its links in a structure of HDF5's newer layouts"),
        (_in_order, "'g' keeps its links in a structure of HDF5's newer layouts"),
        (lambda file: file.create_dataset("a", data=np.zeros((8, 8)), chunks=(2, 2)), "'a' keeps its chunks in a structure"),
        (lambda file: file.create_dataset("a", data=np.zeros(64), chunks=(8,), maxshape=(None,)), "'a' keeps its chunks in a structure"),
        (lambda file: file.create_dataset("a", data=np.zeros((8, 8)), chunks=(2, 2), maxshape=(None, None)), "'a' keeps its chunks"),
    ],
)
def test_the_newer_structures_over_which_hdf5_crashes(build, said, tmp_path):
    with h5py.File(tmp_path / "x", "w", libver="latest") as file:
        build(file)
    message = refused(tmp_path / "x", format="hdf5")
    assert said in message
    assert "write the file anew (h5py: libver='earliest')" in message


def test_what_is_small_in_the_newer_layouts_is_read(tmp_path):
    with h5py.File(tmp_path / "x", "w", libver="latest") as file:
        for at in range(8):
            file[f"g/a{at}"] = np.arange(4)
            file["g"].attrs[f"a{at}"] = at
        file.create_dataset("packed", data=np.arange(64), chunks=(64,), compression="gzip")
    got = Hdf5Store().read(tmp_path / "x")
    assert (len(got.arrays), len(got.strings)) == (9, 8)
    assert (got.arrays["packed"] == np.arange(64)).all()


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
