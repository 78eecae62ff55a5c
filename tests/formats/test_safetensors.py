"""The safetensors container: layout, checks of hostile files, bfloat16, and that one tensor of a large file costs only itself."""

import json
import re
import tracemalloc

import numpy as np
import pytest

from loratk.errors import ConfigError, DtypeError, FormatError, StateError, StoreError, UnknownNameError
from loratk.io import SafetensorsStore, open_safetensors, write_safetensors
from loratk.io.bfloat16 import to_bits, to_float32


def raw(header, data=b""):
    """A file of a header (a dict, text or bytes) and the bytes after it."""
    text = json.dumps(header) if isinstance(header, dict) else header
    text = text.encode() if isinstance(text, str) else text
    return len(text).to_bytes(8, "little") + text + data


def entry(begin=0, end=8, shape=(2,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def opened(tmp_path, content):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with open_safetensors(path) as reader:
        return {name: reader.array(name) for name in reader.names()}


def test_the_bytes_of_a_small_file(tmp_path):
    arrays = {
        "b": np.array([1.5], np.float32),
        "a": np.array([7], np.uint8),
        "ä": np.array([[2]], np.int64),
        "c": np.array(1.0, np.float32),
    }
    write_safetensors(tmp_path / "x", arrays, {"format": "pt"}, bfloat16={"c"})
    header = (
        '{"__metadata__":{"format":"pt"},"ä":{"dtype":"I64","shape":[1,1],"data_offsets":[0,8]},'
        '"b":{"dtype":"F32","shape":[1],"data_offsets":[8,12]},"c":{"dtype":"BF16","shape":[],"data_offsets":[12,14]},'
        '"a":{"dtype":"U8","shape":[1],"data_offsets":[14,15]}}'
    ).encode()
    header += b" " * (-len(header) % 8)
    data = np.int64(2).tobytes() + np.float32(1.5).tobytes() + b"\x80\x3f" + b"\x07"
    assert (tmp_path / "x").read_bytes() == len(header).to_bytes(8, "little") + header + data


def test_names_shapes_dtypes_and_arrays(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {
        "f16": rng.standard_normal((3, 5)).astype(np.float16),
        "bf16": to_float32(to_bits(rng.standard_normal((4, 2)).astype(np.float32))),
        "fortran": np.asfortranarray(rng.standard_normal((3, 4))),
        "big": np.arange(3, dtype=">i4"),
        "flags": np.array([True, False]),
        "empty": np.zeros((0, 7), np.float32),
        "scalar": np.array(2.5),
        "../odd//name\n": np.zeros(1),
    }
    write_safetensors(tmp_path / "x", arrays, {"format": "pt", "ä": ""}, bfloat16={"bf16"})
    with open_safetensors(tmp_path / "x") as reader:
        assert reader.metadata == {"format": "pt", "ä": ""}
        assert set(reader.names()) == set(arrays)
        assert (reader.dtype("bf16"), reader.shape("bf16"), reader.dtype("f16"), reader.dtype("flags")) == ("BF16", (4, 2), "F16", "BOOL")
        for name, want in arrays.items():
            got = reader.array(name)
            assert (got.dtype, got.shape, got.tobytes()) == (want.dtype.newbyteorder("="), want.shape, want.astype(got.dtype).tobytes())
            assert got.flags.writeable
        with pytest.raises(UnknownNameError, match="'nowhere'"):
            reader.array("nowhere")
    with pytest.raises(StateError, match="is closed"):
        reader.array("f16")


HOSTILE = {
    "nothing": (b"", "announces nothing"),
    "only a length": (b"\x02\0\0\0\0\0\0", "announces nothing"),
    "a header beyond the file": (b"\xff\0\0\0\0\0\0\0{}", "announces a header of 255"),
    "a huge header": (b"\xff" * 8 + b"{}", "at most 100000000"),
    "no brace": (raw(" {}"), "must start with '{'"),
    "a list": (raw("[]"), "must start with '{'"),
    "no UTF-8": (raw(b'{"\xff": 1}'), "no JSON in UTF-8"),
    "no JSON": (raw("{,}"), "no JSON in UTF-8"),
    "text after it": (raw("{} {}"), "no JSON in UTF-8"),
    "NaN": (raw('{"a": NaN}'), "NaN is not JSON"),
    "nested too deeply": (raw('{"a":' + "[" * 200_000), "no JSON in UTF-8"),
    "a number too long": (raw('{"a":' + "1" * 5000 + "}"), "no JSON in UTF-8"),
    "a key twice": (raw('{"a": %s, "a": %s}' % ((json.dumps(entry()),) * 2), bytes(8)), "the key 'a' twice"),
    "dtype twice": (raw('{"a": {"dtype": "F32", "dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}', bytes(8)), "'dtype' twice"),
    "numbers as metadata": (raw({"__metadata__": {"a": 1}}), "must hold text only"),
    "nested metadata": (raw({"__metadata__": {"a": {}}}), "must hold text only"),
    "a lone surrogate": (raw('{"__metadata__": {"a": "\\ud800"}}'), "must hold text only"),
    "a name that is no text": (raw('{"\\udfff": ' + json.dumps(entry()) + "}", bytes(8)), "no text"),
    "no record": (raw({"a": 4}), "tensor 'a' must have a record, found 4"),
    "no shape": (raw({"a": {"dtype": "F32", "data_offsets": [0, 8]}}, bytes(8)), "lacks shape"),
    "an unknown dtype": (raw({"a": entry(dtype="F128")}, bytes(8)), "unknown dtype 'F128'"),
    "a dtype that is no text": (raw({"a": entry(dtype=[])}, bytes(8)), r"unknown dtype \[\]"),
    "a negative size": (raw({"a": entry(shape=[-2])}, bytes(8)), "must have a shape"),
    "a size that is no number": (raw({"a": entry(shape=[2.0])}, bytes(8)), "must have a shape"),
    "a size that is a truth": (raw({"a": entry(shape=[True, 2])}, bytes(8)), "must have a shape"),
    "too many axes": (raw({"a": entry(shape=[1] * 70 + [2])}, bytes(8)), "at most 64 sizes"),
    "an overflow": (raw({"a": entry(shape=[2**32, 2**32, 2])}, bytes(8)), "more than any file holds"),
    "an overflow times nothing": (raw({"a": entry(0, 0, [2**40, 2**40, 0])}), "more than any file holds"),
    "one offset": (raw({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0]}}, bytes(8)), "two offsets"),
    "a negative offset": (raw({"a": entry(-8, 0)}, bytes(8)), "two offsets"),
    "offsets backwards": (raw({"a": entry(8, 0)}, bytes(8)), "has 8 bytes, but lies at"),
    "another size": (raw({"a": entry(shape=[3])}, bytes(8)), "has 12 bytes, but lies at"),
    "half a byte": (raw({"a": entry(0, 1, [3], "F4")}, bytes(1)), "whole byte"),
    "an overlap": (raw({"a": entry(0, 8), "b": entry(4, 12)}, bytes(12)), "'b', at .* overlaps tensor 'a'"),
    "the same place": (raw({"a": entry(0, 8), "b": entry(0, 8)}, bytes(8)), "overlaps"),
    "nothing inside another": (raw({"a": entry(0, 8), "b": entry(4, 4, [0])}, bytes(8)), "'b', .* overlaps"),
    "a hole": (raw({"a": entry(0, 8), "b": entry(12, 20)}, bytes(20)), "leaves 4 bytes without an owner after tensor 'a'"),
    "a hole at the start": (raw({"a": entry(8, 16)}, bytes(16)), "leaves 8 bytes without an owner after the header"),
    "cut short": (raw({"a": entry()}, bytes(7)), "take 8 bytes, but only 7"),
    "trailing bytes": (raw({"a": entry()}, bytes(9)), "1 bytes follow the last tensor"),
    "a truth that is none": (raw({"a": entry(0, 2, [2], "BOOL")}, b"\1\2"), "other than 0 and 1"),
    "eight bits": (raw({"a": entry(0, 2, [2], "F8_E4M3")}, b"\1\2"), "'a' is stored as F8_E4M3, which loratk does not read"),
}  # fmt: skip


@pytest.mark.parametrize(("content", "said"), HOSTILE.values(), ids=HOSTILE.keys())
def test_a_broken_file_is_refused(content, said, tmp_path):
    with pytest.raises(FormatError, match=said):
        opened(tmp_path, content)


def test_all_faults_are_told_at_once(tmp_path):
    with pytest.raises(FormatError) as caught:
        opened(tmp_path, raw({"a": entry(dtype="X"), "b": entry(shape=[-1]), "__metadata__": {"c": 1}}, bytes(8)))
    assert all(part in str(caught.value) for part in ("'X'", "'b'", "__metadata__", "x.safetensors"))


def test_a_padded_header_and_keys_it_does_not_know(tmp_path):
    got = opened(tmp_path, raw(json.dumps({"a": entry() | {"more": 1}}) + "     ", np.array([1, 2], np.float32).tobytes()))
    np.testing.assert_array_equal(got["a"], np.array([1, 2], np.float32))


def test_an_eight_bit_tensor_does_not_keep_the_others_from_being_read(tmp_path):
    (tmp_path / "x").write_bytes(raw({"a": entry(), "b": entry(8, 10, [2], "F8_E5M2")}, bytes(10)))
    with open_safetensors(tmp_path / "x") as reader:
        assert reader.dtype("b") == "F8_E5M2"
        assert reader.array("a").tolist() == [0, 0]


def test_one_tensor_of_a_large_file_costs_itself(tmp_path):
    """A sparse file of 10 GB: reading the last kilobyte must take neither its memory nor its time."""
    size = 10 << 30
    want = np.arange(256, dtype=np.float32)
    header = raw({"large": entry(0, size, [size // 4]), "small": entry(size, size + 1024, [256])})
    with (tmp_path / "x").open("wb") as file:
        file.write(header)
        file.seek(len(header) + size)
        file.write(want.tobytes())
    tracemalloc.start()
    with open_safetensors(tmp_path / "x") as reader:
        assert reader.shape("large") == (size // 4,)
        np.testing.assert_array_equal(reader.array("small"), want)
    with SafetensorsStore().open(tmp_path / "x") as reader:
        np.testing.assert_array_equal(reader.array("small"), want)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


def test_a_file_cut_while_it_is_open(tmp_path):
    path = tmp_path / "x"
    write_safetensors(path, {"a": np.zeros(100_000)}, {})
    with open_safetensors(path) as reader:
        path.write_bytes(path.read_bytes()[:1000])
        with pytest.raises(FormatError, match="cut short while it was open"):
            reader.array("a")


def test_what_cannot_be_written(tmp_path):
    path, one = tmp_path / "x", np.zeros(1, np.float32)
    write_safetensors(path, {"old": one}, {})
    old = path.read_bytes()
    refused = [
        (ConfigError, "__metadata__", {"__metadata__": one}, {}, ()),
        (ConfigError, "metadata 'a' must be text", {}, {"a": 1}, ()),
        (ConfigError, "is no text", {"\ud800": one}, {}, ()),
        (ConfigError, "no array 'b'", {"a": one}, {}, ["b"]),
        (DtypeError, "'c' has the complex dtype", {"a": one, "c": np.zeros(1, complex)}, {}, ()),
        (DtypeError, "'a' is a list", {"a": [1.0]}, {}, ()),
        (DtypeError, "'a' has the dtype float64; bfloat16", {"a": np.zeros(1)}, {}, ["a"]),
    ]
    for kind, said, arrays, metadata, bfloat16 in refused:
        with pytest.raises(kind, match=re.escape(said)):
            write_safetensors(path, arrays, metadata, bfloat16)
    assert path.read_bytes() == old
    assert sorted(tmp_path.iterdir()) == [path]
    with pytest.raises(StoreError, match="nowhere"), open_safetensors(tmp_path / "nowhere"):
        pass


def test_bfloat16_is_the_nearest_number():
    """Against the definition: of the two bfloat16 numbers around it the nearer, of two equally near the one whose last bit is 0."""
    rng = np.random.default_rng(1)
    bits = rng.integers(0, 2**32, 200_000, dtype=np.uint64).astype(np.uint32)
    bits[:1000] = (bits[:1000] & 0xFFFF0000) | 0x8000  # ties
    x = bits.view(np.float32)
    x = x[np.isfinite(x)]
    got = to_bits(x)
    below = (x.view(np.uint32) >> 16).astype(np.uint16)  # towards zero
    lower, upper = (np.abs(to_float32(b).astype(np.float64)) for b in (below, below + np.uint16(1)))
    upper[np.isinf(upper)] = 2.0**128
    exact = np.abs(x.astype(np.float64))
    up = (upper - exact < exact - lower) | ((upper - exact == exact - lower) & (below % 2 == 1))
    np.testing.assert_array_equal(got, below + up.astype(np.uint16))


@pytest.mark.parametrize("bits", [0x7F800001, 0x7FFFFFFF, 0xFF800001, 0xFFFFFFFF, 0x7FC00000])
def test_nan_stays_nan_with_its_sign(bits):
    got = to_float32(to_bits(np.array([bits], np.uint32).view(np.float32)))
    assert np.isnan(got[0])
    assert np.signbit(got[0]) == bool(bits >> 31)


def test_bfloat16_at_the_ends():
    x = np.array([0.0, -0.0, np.inf, -np.inf, 3.4028234e38, 1e-45], np.float32)
    got = to_float32(to_bits(x))
    assert got.tobytes() == np.array([0.0, -0.0, np.inf, -np.inf, np.inf, 0.0], np.float32).tobytes()
    every = np.arange(2**16, dtype=np.uint16)
    numbers = every[~np.isnan(to_float32(every))]
    np.testing.assert_array_equal(to_bits(to_float32(numbers)), numbers)
    np.testing.assert_array_equal(to_float32(to_bits(np.float16([1.5, -2.25]))), [1.5, -2.25])


def test_the_store_refuses_names_and_strings_that_others_cannot_keep(tmp_path):
    path = tmp_path / "x.safetensors"
    for content, said in [(raw({"a/../b": entry()}, bytes(8)), "'..'"), (raw({"__metadata__": {"a": "b\0"}}), "NUL")]:
        path.write_bytes(content)
        with pytest.raises(FormatError, match=said):
            SafetensorsStore().read(path)


def test_the_store_reads_bfloat16_as_float32(tmp_path):
    write_safetensors(tmp_path / "x", {"a": np.array([1.5], np.float32)}, {}, bfloat16={"a"})
    with SafetensorsStore().open(tmp_path / "x") as reader:
        assert reader.info("a") == ((1,), np.dtype(np.float32))
        assert reader.array("a").tolist() == [1.5]
