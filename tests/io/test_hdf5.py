"""HDF5 files that others wrote: what is read, what is refused, and what the errors say."""

import hashlib
import struct
import subprocess
import sys

import h5py
import numpy as np
import pytest

from loratk.errors import ConfigError, FormatError
from loratk.io import Hdf5Store

STORE = Hdf5Store()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "file.h5"


def fault(path):
    with pytest.raises(FormatError) as caught:
        STORE.read(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_a_plain_file(path):
    with h5py.File(path, "w") as file:
        file["a/b"] = np.arange(3)
        file["a"].attrs["note"] = "größe"
        file.attrs["fixed"] = np.bytes_(b"fixed")
        file.attrs["one"] = np.array(["in a list"], object)
    got = STORE.read(path)
    assert got.arrays["a/b"].tolist() == [0, 1, 2]
    assert got.strings == {"a/note": "größe", "fixed": "fixed", "one": "in a list"}


def test_numbers_as_attributes_read_as_json_text(path):
    with h5py.File(path, "w") as file:
        file.attrs["int"], file.attrs["float"], file.attrs["bool"], file.attrs["single"] = 4, 0.1, np.True_, np.float32(8)
        file.attrs["matlab"] = np.array([4.0])
    assert STORE.read(path).strings == {"int": "4", "float": "0.1", "bool": "true", "single": "8.0", "matlab": "4.0"}


def test_what_may_be_there_is_ignored(path):
    with h5py.File(path, "w") as file:
        file["a"] = np.arange(3)
        file["a"].attrs["unit"] = "m"
        file["a"].attrs["ref"] = file["a"].ref
        file.attrs["list"] = [1, 2, 3]
        file.attrs["ref"] = file["a"].ref
        file.attrs["empty"] = h5py.Empty("S1")
        file.attrs["odd/name"] = "x"
        file.create_group("bare")
    got = STORE.read(path)
    assert (list(got.arrays), got.strings) == (["a"], {})


@pytest.mark.parametrize("libver", ["earliest", "v108", "latest"])
def test_any_version_layout_and_byte_order(path, libver):
    want = np.arange(60.0).reshape(6, 10)
    with h5py.File(path, "w", libver=libver) as file:
        file.create_dataset("gzip", data=want, compression="gzip", shuffle=True, fletcher32=True)
        file.create_dataset("chunks", data=want, chunks=(6, 10) if libver == "latest" else (2, 3))
        file["big endian"] = want.astype(">f8")
        file["one"] = file["chunks"]
    got = STORE.read(path).arrays
    assert list(got) == ["big endian", "chunks", "gzip", "one"]
    for array in got.values():
        assert array.dtype == np.dtype("=f8")
        assert (array == want).all()


def test_long_text_as_a_dataset(path):
    with h5py.File(path, "w") as file:
        file["a/long"] = "x" * 100_000
    assert STORE.read(path).strings == {"a/long": "x" * 100_000}


@pytest.mark.parametrize(
    ("said", "build"),
    [
        ("'x' is a soft link", lambda file: file.__setitem__("x", h5py.SoftLink("/a"))),
        ("'x' is a external link", lambda file: file.__setitem__("x", h5py.ExternalLink("other.h5", "/a"))),
        ("'x' is a virtual dataset", lambda file: file.create_virtual_dataset("x", _virtual())),
        ("'x' keeps its data in an external file", lambda file: file.create_dataset("x", (3,), "f8", external=[("x.raw", 0, 24)])),
        ("'x' has the object dtype", lambda file: file.create_dataset("x", data=file["a"].ref, dtype=h5py.ref_dtype)),
        ("'x' has the object dtype", lambda file: file.create_dataset("x", data=["many", "texts"])),
        ("'x' has the string dtype", lambda file: file.create_dataset("x", data=np.array([b"fixed", b"texts"]))),
        ("'x' has the structured dtype", lambda file: file.create_dataset("x", (2,), np.dtype("f4,i4"))),
        ("'x' has the complex dtype", lambda file: file.create_dataset("x", (2,), np.complex64)),
        ("'x' has the dtype", lambda file: file.create_dataset("x", data=np.array([b"raw!"], "V4"))),
        ("'x' is an enumeration other than", lambda file: file.create_dataset("x", data=[1], dtype=h5py.enum_dtype({"ONE": 1}))),
        ("'x' has a number type that is close to", lambda file: _bfloat16(file)),
        ("'x' has no shape", lambda file: file.create_dataset("x", data=h5py.Empty("f8"))),
        ("'x' is neither a group nor a dataset", lambda file: file.__setitem__("x", np.dtype("f8"))),
        ("'x' uses the filter 'lzf'; only gzip", lambda file: file.create_dataset("x", data=np.zeros(9), compression="lzf")),
        ("a bomb", lambda file: _bomb(file)),
        ("'x' declares 24 bytes, but stores none", lambda file: file.create_dataset("x", (3,), "f8")),
        ("'x/self' is a group that is also reached by another path", lambda file: file.create_group("x").__setitem__("self", file["x"])),
        ("'x/root' is a group that is also reached", lambda file: file.create_group("x").__setitem__("root", file["/"])),
        ("the name '..' has the part '..'", lambda file: h5py.h5g.create(file.id, b"..")),
        ("has the part '..'", lambda file: file.create_dataset("x/../y", data=1.0)),
        ("the group '/' holds the name b'\\xff', which is not UTF-8", lambda file: h5py.h5g.create(file.id, b"\xff")),
        ("begins with '__loratk'", lambda file: file.create_group("__loratk_x")),
        ("attribute 'x' of group '/' holds a lone surrogate", lambda file: file.attrs.create("x", np.bytes_(b"\xff\xfe"))),
        (
            "the string dataset 'x' has an attribute of the same name",
            lambda file: (file.attrs.create("x", "1"), file.__setitem__("x", "2")),
        ),
    ],
)
def test_what_must_not_be_there_is_refused(path, said, build):
    with h5py.File(path, "w") as file:
        file["a"] = np.arange(3)
        build(file)
    assert said in fault(path)


def _virtual():
    layout = h5py.VirtualLayout((3,), "f8")
    layout[:] = h5py.VirtualSource("other.h5", "a", (3,))
    return layout


def _bomb(file):
    bomb = file.create_dataset("x", (1 << 26,), "f8", chunks=(1,))
    bomb[0] = 1


def _bfloat16(file):
    kind = h5py.h5t.IEEE_F32LE.copy()
    kind.set_fields(15, 7, 8, 0, 7)
    kind.set_size(2)
    kind.set_ebias(127)
    h5py.h5d.create(file.id, b"x", kind, h5py.h5s.create_simple((2,)))


def test_every_fault_is_listed(path):
    with h5py.File(path, "w") as file:
        file["soft"], file["text"], file["good"] = h5py.SoftLink("/good"), ["a", "b"], [1.0]
    message = fault(path)
    assert "'soft'" in message
    assert "'text'" in message
    assert "'good'" not in message


@pytest.mark.parametrize("dtype", ["<i2", ">f4", "?"])
def test_a_checksum_attribute_is_checked(path, dtype):
    array = np.array([[0, 1, 1], [1, 0, 1]], dtype)
    want = hashlib.sha256(array.astype(np.dtype(dtype).newbyteorder("<")).tobytes()).hexdigest()
    with h5py.File(path, "w") as file:
        file["a"] = array
        file["a"].attrs["sha256"] = want.upper()
    assert (STORE.read(path).arrays["a"] == array).all()
    with h5py.File(path, "r+") as file:
        file["a"][0, 0] = 1
    assert "dataset 'a' has the SHA-256" in fault(path)


def test_an_edited_file_says_so_and_what_to_do(path):
    STORE.write(path, {"a": np.zeros(3)}, {"note": "old"})
    with h5py.File(path, "r+") as file:
        file["a"][0] = 1
        file.attrs["note"] = "new"
    message = fault(path)
    assert "changed by another program" in message
    with h5py.File(path, "r+") as file:
        del file.attrs["__loratk_seal__"]
    assert "del file.attrs['__loratk_seal__']" in message
    got = STORE.read(path)
    assert (got.arrays["a"].tolist(), got.strings) == ([1, 0, 0], {"note": "new"})


def test_other_programs_do_not_see_the_seal(path):
    STORE.write(path, {"a/b": np.arange(4, dtype=np.int8), "flag": np.array(True)}, {"a/note": "größe", "long": "x" * 200_000})
    with h5py.File(path, "r") as file:
        assert file["a/b"].dtype == np.int8
        assert file["a/b"][:].tolist() == [0, 1, 2, 3]
        assert file["flag"][()] == np.True_
        assert file["a"].attrs["note"] == "größe"
        assert len(file.attrs["long"]) == 200_000


def test_not_hdf5_at_all(path):
    path.write_bytes(b"\x89HDF\r\n\x1a\n" + b"\0" * 500)
    assert "with the store 'hdf5'" in fault(path)


@pytest.mark.parametrize(("index", "size"), [(0, 0), (1, (1 << 64) - 16), (1, 1 << 63)])
def test_a_heap_that_would_hang_hdf5(path, index, size):
    with h5py.File(path, "w", libver="earliest") as file:
        file.attrs["text"] = "x" * 100
    whole = bytearray(path.read_bytes())
    struct.pack_into("<H6xQ", whole, whole.index(b"GCOL") + 16, index, size)
    path.write_bytes(whole)
    code = "import sys; from loratk.io import Hdf5Store; Hdf5Store().read(sys.argv[1])"
    run = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False, timeout=60)
    assert "FormatError" in run.stderr
    assert "has strings in the heap at byte" in run.stderr


def test_a_write_fault_names_everything_and_leaves_the_file(path):
    STORE.write(path, {}, {})
    old = path.read_bytes()
    with pytest.raises(ConfigError, match=r"(?s)array '/a'.*string 'b//c'.*string 'd' holds the character NUL"):
        STORE.write(path, {"/a": np.zeros(1)}, {"b//c": "", "d": "\0"})
    assert path.read_bytes() == old
