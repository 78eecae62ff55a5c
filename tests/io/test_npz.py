"""npz archives that others wrote: what is read, what is refused, and what the errors say."""

import io
import json
import tracemalloc
import zipfile

import numpy as np
import pytest

from loratk.errors import FormatError
from loratk.io import NpzStore

STORE = NpzStore()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "file.npz"


def fault(path):
    with pytest.raises(FormatError) as caught:
        STORE.read(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def npy(array, **options):
    file = io.BytesIO()
    np.lib.format.write_array(file, array, **options)
    return file.getvalue()


def header(shape, descr="<f8"):
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"shape": shape, "fortran_order": False, "descr": descr})
    return file.getvalue()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_archives_of_numpy(path, save):
    arrays = {"a/b": np.asfortranarray(np.arange(6.0).reshape(2, 3)), "c": np.array(4, ">i2"), "d.npy": np.zeros((0, 2), bool)}
    save(path, **arrays)
    got = STORE.read(path)
    assert got.strings == {}
    for name, want in arrays.items():
        assert got.arrays[name].dtype == want.dtype.newbyteorder("=")
        assert got.arrays[name].shape == want.shape
        assert (got.arrays[name] == want).all()


def test_numpy_reads_ours(path):
    want = np.arange(6, dtype=np.float16).reshape(2, 3)
    STORE.write(path, {"a/b": want}, {"note": "größe"})
    with np.load(path) as archive:
        assert archive["a/b"].dtype == np.float16
        assert (archive["a/b"] == want).all()
        assert json.loads(archive["__loratk__.json"])["strings"] == {"note": "größe"}
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None


@pytest.mark.parametrize(
    ("said", "member", "data"),
    [
        ("has the object dtype", "x.npy", npy(np.array([None]), allow_pickle=True)),
        ("has the string dtype", "x.npy", npy(np.array(["a"]))),
        ("has the structured dtype", "x.npy", npy(np.zeros(2, "f4,i4"))),
        ("has the complex dtype", "x.npy", npy(np.zeros(2, complex))),
        ("has no .npy header", "x.npy", b"not an array"),
        ("has no .npy header", "x.npy", b""),
        ("declares shape (1000000000, 1000000000) of float64", "x.npy", header((10**9, 10**9)) + b"\0" * 8),
        ("declares shape (-1,)", "x.npy", header((-1,)) + b"\0" * 8),
        ("declares shape (2,) of float64, 16 bytes, but holds 24", "x.npy", header((2,)) + b"\0" * 24),
        ("'x.txt' is no .npy file", "x.txt", b"text"),
        ("has an empty part", "/abs.npy", npy(np.zeros(1))),
        ("has the part '..'", "../up.npy", npy(np.zeros(1))),
        ("'a' is an array, so array 'a/b' cannot lie below it", "a/b.npy", npy(np.zeros(1))),
    ],
)
def test_what_must_not_be_there_is_refused(path, said, member, data):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.npy", npy(np.zeros(3)))
        archive.writestr(member, data)
    assert said in fault(path)


def test_two_members_of_one_name(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.npy", npy(np.zeros(3)))
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("a.npy", npy(np.ones(3)))
    assert "two members named 'a.npy'" in fault(path)


def test_an_unusual_compression(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("a.npy", npy(np.zeros(3)))
    assert "only stored and deflated" in fault(path)


def test_what_deflates_well_is_no_bomb(path):
    np.savez_compressed(path, zeros=np.zeros(1 << 22))
    assert not STORE.read(path).arrays["zeros"].any()


def packed(size, claimed):
    """Central and local record of a member whose header claims more zeros than are there."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", header((claimed,), "|u1") + bytes(size))
    start = len(header((claimed,), "|u1"))
    return made.getvalue().replace((start + size).to_bytes(4, "little"), (start + claimed).to_bytes(4, "little"))


def test_a_bomb_is_refused_before_memory_is_taken(path):
    path.write_bytes(packed(1000, 1 << 29))
    tracemalloc.start()
    assert "a bomb" in fault(path)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_many_small_bombs_are_one_large_one(path):
    """Each member stays below the limit, and all lie in the same bytes."""
    whole = packed(1000, 100 << 20)
    central, end = whole.index(b"PK\1\2"), whole.index(b"PK\5\6")
    entries = [whole[central : end - 5] + b"%d.npy" % at for at in range(9)]
    directory = b"".join(entries)
    tail = bytearray(whole[end:])
    tail[8:12] = len(entries).to_bytes(2, "little") * 2
    tail[12:16] = len(directory).to_bytes(4, "little")
    path.write_bytes(whole[:central] + directory + tail)
    assert "with all its members it declares" in fault(path)


def test_a_member_that_claims_more_bytes_than_the_file_has(path):
    whole = bytearray(packed(1000, 1000))
    at = whole.index(b"PK\1\2")
    whole[at + 20 : at + 24] = (1 << 31).to_bytes(4, "little")
    path.write_bytes(whole)
    assert "claims 2147483648 stored bytes" in fault(path)


def record(**changes):
    return json.dumps({"format": "loratk-npz", "format_version": 1, "strings": {"a": "b"}} | changes)


def test_strings_by_hand(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("__loratk__.json", record())
    assert STORE.read(path).strings == {"a": "b"}


@pytest.mark.parametrize(
    ("said", "text"),
    [
        ("version 2", record(format_version=2)),
        ("format 'other'", record(format="other")),
        ("'a' is a int, not a str", record(strings={"a": 1})),
        ("has an empty part", record(strings={"a//b": "c"})),
        ("NaN is not JSON", '{"format": NaN}'),
        ("a key is given twice", '{"format": "loratk-npz", "format": "loratk-npz"}'),
        ("lacks something", "{}"),
        ("in another form", "[]"),
        ("cannot be used", b"\xff"),
        ("nested too deeply", "[" * 100_000),
        ("the seal that was at its end is missing", record(sealed=True)),
    ],
)
def test_a_bad_record_of_strings(path, said, text):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("__loratk__.json", text)
        archive.writestr("x.npy", npy(np.zeros(1)))
    assert said in fault(path)


def test_an_edited_archive_says_so_and_what_to_do(path):
    STORE.write(path, {"a": np.zeros(3)}, {})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("b.npy", npy(np.zeros(3)))
    message = fault(path)
    assert "not as it was written" in message
    assert "set 'sealed' to false in its member '__loratk__.json' and delete the archive's comment" in message


def test_the_seal_of_a_large_archive_fits_its_comment(path, monkeypatch):
    monkeypatch.setattr("loratk.io.npz._COMMENT_LIMIT", 64 + 32 * 4)
    want = np.random.default_rng(0).random(100_000)
    STORE.write(path, {"a": want}, {})
    assert (STORE.read(path).arrays["a"] == want).all()
    with zipfile.ZipFile(path) as archive:
        assert len(archive.comment) <= 64 + 32 * 4
