"""HDF5 files made to do harm: to crash, hang or fill the memory of HDF5 itself, or to lead elsewhere."""

import os
import struct
import subprocess
import sys

import h5py
import numpy as np
import pytest

from loratk.errors import LoratkError
from loratk.io import Hdf5Store
from loratk.io.hdf5_headers import messages
from loratk.io.hdf5_strings import in_attribute
from loratk.io.seal import SealedFile, append_seal
from tests.io.refusing import refused

STRINGS = {"format": "loratk-adapter", "format_version": "1", "adapters/mine/config": "{}"}


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


@pytest.mark.parametrize("place", [4, 8, 12])
@pytest.mark.parametrize("where", ["root", "group", "array", "dataset", "compact dataset"])
def test_types_of_strings_that_are_damaged(where, place, tmp_path):
    """The size of what says where a string is, what its letters are, and their size: HDF5 reads past the end, or takes gigabytes."""
    whole = _with_text(tmp_path / "x", where)
    text = b"\x19\x01\x01\x00\x10\x00\x00\x00\x10\x00\x00\x00\x01\x00\x00\x00"
    assert text in whole
    (tmp_path / "x").write_bytes(whole.replace(text, text[:place] + struct.pack("<I", 0x40000009) + text[place + 4 :]))
    assert "has a string whose type is damaged" in refused(tmp_path / "x", format="hdf5")


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
