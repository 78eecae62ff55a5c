"""The contract of a store, as one function that a plugin author runs over theirs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np

from ..errors import ConfigError, DtypeError, LoratkError, StoreError, UnknownNameError
from ..io.names import DTYPES
from ..io.store import Contents, Store


def check_store(store: Store, tmp_path: Path) -> None:
    """Raises AssertionError with the first promise of `loratk.io.store.Store` that `store` breaks. Writes into `tmp_path` only."""
    assert isinstance(store.name, str), "a store needs a name"
    assert store.name, "a store needs a name that is not empty"
    assert isinstance(store.suffixes, tuple), "suffixes must be a tuple of strings"
    assert all(suffix.startswith(".") for suffix in store.suffixes), "each suffix begins with a dot"
    path = tmp_path / f"contract{store.suffixes[0] if store.suffixes else ''}"
    for want in (_sample(), Contents({}, {}), Contents({}, {"only": "a string"}), Contents({"only": np.arange(3)}, {})):
        store.write(path, want.arrays, want.strings)
        assert store.sniff(path), "sniff must recognise what write wrote"
        assert_same(store.read(path), want)
    _check_sniff(store, tmp_path)
    _check_parts(store, path)
    _check_refusals(store, path)
    _check_broken_write(store, path)
    _check_broken_files(store, path, tmp_path)


def assert_same(got: Contents, want: Contents) -> None:
    """Raises AssertionError where two contents differ in a name, a string, or an array's dtype, shape or bits."""
    assert got.strings == want.strings, f"strings: got {got.strings}, want {want.strings}"
    assert sorted(got.arrays) == sorted(want.arrays), f"names: got {sorted(got.arrays)}, want {sorted(want.arrays)}"
    for name, array in want.arrays.items():
        found = got.arrays[name]
        assert found.dtype == array.dtype.newbyteorder("="), f"{name!r}: got dtype {found.dtype}, want {array.dtype}"
        assert found.shape == array.shape, f"{name!r}: got shape {found.shape}, want {array.shape}"
        assert found.tobytes() == array.astype(found.dtype).tobytes(), f"{name!r}: the values changed"


def _sample() -> Contents:
    random = np.random.default_rng(0)
    arrays = {f"dtype/{dtype.name}": random.integers(0, 2, (3, 4)).astype(dtype) for dtype in DTYPES}
    arrays |= {
        "floats": np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 5e-324, np.pi]),
        "scalar": np.array(2.5, np.float32),
        "empty": np.zeros((0, 5), np.float16),
        "fortran": np.asfortranarray(random.random((3, 5))),
        "strided": random.random((6, 6))[::2, 1::2],
        "big endian": np.arange(4, dtype=">i4"),
        "deep/er/and/deep.er/lora_A": random.random((2, 2)),
        "größe/層/🙂 %2F\\x.npy": np.arange(2),
    }
    strings = {
        "empty": "",
        "text": "größe\n層\t🙂 ",
        "deep/er/note": "4",
        "beside/nothing": "{}",
        "long": "ä" * 100_000,
        "scalar": "as an array",
    }
    return Contents(arrays, strings)


def _check_sniff(store: Store, tmp_path: Path) -> None:
    other = tmp_path / "other"
    for content in (b"", b"x", b"\0" * 600, b"plain text\n" * 50):
        other.write_bytes(content)
        assert store.sniff(other) is False, f"sniff must be False for {content[:10]!r}"


def _check_parts(store: Store, path: Path) -> None:
    want = _sample()
    store.write(path, want.arrays, want.strings)
    assert_same(store.read(path, ["scalar", "empty"]), Contents({name: want.arrays[name] for name in ("scalar", "empty")}, want.strings))
    assert_same(store.read(path, []), Contents({}, want.strings))
    message = str(_refused(UnknownNameError, store.read, path, ["scalar", "nowhere", "neither"]))
    assert "'nowhere'" in message, "an unknown name must be listed"
    assert "'neither'" in message, "every unknown name must be listed"
    with store.open(path) as reader:
        reader.verify()
        assert reader.strings == want.strings, "open: the strings differ"
        assert sorted(reader.names()) == sorted(want.arrays), "open: the names differ"
        for name, array in want.arrays.items():
            assert reader.info(name) == (array.shape, array.dtype.newbyteorder("=")), f"open: info of {name!r}"
        assert_same(Contents({name: reader.array(name) for name in reader.names()}, reader.strings), want)
        _refused(UnknownNameError, reader.array, "nowhere")


def _check_refusals(store: Store, path: Path) -> None:
    old = path.read_bytes()
    one = np.zeros(1)
    for bad in (np.array([None]), np.array(["text"]), np.zeros(2, complex), np.zeros(2, "f4,i4"), np.zeros(2, "M8[s]"), [1.0]):
        _refused(DtypeError, store.write, path, {"a": bad}, {})
    for name in ("", "/a", "a/", "a//b", ".", "a/../b", "a\0b", "\ud800", "x" * 5000):
        _refused(ConfigError, store.write, path, {name: one}, {})
        _refused(ConfigError, store.write, path, {}, {name: "text"})
    _refused(ConfigError, store.write, path, {"a": one, "a/b": one}, {})
    _refused(ConfigError, store.write, path, {"a": one}, {"a/b": "text"})
    for value in ("a\0b", "\udc80", 4):
        _refused(ConfigError, store.write, path, {}, {"a": value})
    assert path.read_bytes() == old, "a refused write must leave the old file as it was"
    _refused(StoreError, store.read, path.with_name("no such file"))
    _refused(StoreError, store.write, path.parent / "no such folder" / path.name, {}, {})


class _Breaking(Mapping[str, np.ndarray]):
    """Arrays that can be looked at once, as a check does, and break when they are written."""

    def __init__(self) -> None:
        self.asked = 0

    def __getitem__(self, name: str) -> np.ndarray:
        self.asked += 1
        if self.asked > 4:
            raise KeyboardInterrupt
        return np.ones(5000)

    def __iter__(self) -> Iterator[str]:
        return iter(["a", "b", "c"])

    def __len__(self) -> int:
        return 3


def _check_broken_write(store: Store, path: Path) -> None:
    old, beside = path.read_bytes(), sorted(path.parent.iterdir())
    try:
        store.write(path, _Breaking(), {})
    except KeyboardInterrupt:
        assert path.read_bytes() == old, "an interrupted write must leave the old file as it was"
        assert sorted(path.parent.iterdir()) == beside, "an interrupted write must leave no other file behind"
    else:
        raise AssertionError("an exception while the arrays are read must reach the caller")


def _check_broken_files(store: Store, path: Path, tmp_path: Path) -> None:
    want = Contents({"m/A": np.arange(6.0).reshape(2, 3), "m/B": np.array([True, False])}, {"m/rank": "4"})
    store.write(path, want.arrays, want.strings)
    whole, broken = path.read_bytes(), tmp_path / "broken"
    for at in range(0, len(whole), max(1, len(whole) // 300)):
        broken.write_bytes(whole[:at])
        try:
            got = store.read(broken)
        except LoratkError:
            pass
        else:
            assert_same(got, want)  # a file cut at its end may still be whole
        broken.write_bytes(whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :])
        with suppress(LoratkError):  # any other exception is a bug; detecting every flip is for stores with checksums
            store.read(broken)


def _refused(kind: type[LoratkError], action, *arguments) -> LoratkError:  # type: ignore[no-untyped-def]
    try:
        action(*arguments)
    except kind as error:
        return error
    except Exception as error:
        raise AssertionError(f"{action.__qualname__}{arguments!r:.200} must raise {kind.__name__}, not {type(error).__name__}") from error
    raise AssertionError(f"{action.__qualname__}{arguments!r:.200} must raise {kind.__name__}")
