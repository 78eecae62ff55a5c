"""Adapters through files: exactly, checked as a whole, with errors that name every fault."""

from contextlib import contextmanager

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loratk.errors import ConfigError, FormatError, LoratkError, UnknownNameError
from loratk.exchange import AdapterState, list_adapters, read_adapters, write_adapters
from loratk.io import Hdf5Store, NpzStore

STORES = {"hdf5": Hdf5Store(), "npz": NpzStore()}
SUFFIXES = ["file.h5", "file.npz"]


def adapter(name="mine", **changes):
    random = np.random.default_rng(1)
    record = {"method": "dora", "layer_type": "Linear", "shape": [6, 4], "rank": 2, "alpha": 8.0, "scaling": 4.0}
    fields = {
        "config": {"rank": 2, "alpha": 8.0, "targets": ["q", "v"], "seed": None, "nested": {"a": True}},
        "tensors": {
            "layers.0.lora_A": random.standard_normal((6, 2)).astype(np.float32),
            "layers.0.lora_B": random.standard_normal((2, 4)).astype(np.float32),
            "layers.0.magnitude": random.random(4),
            "head.bias": np.arange(4, dtype=np.float16),
        },
        "modules": {"layers.0": record, "head": {"method": "bias"}},
        "fingerprint": "sha256:00ff",
        "metadata": {"author": "me", "note": "größe / %"},
    }
    return AdapterState(name, **fields | changes)


def assert_equal(got, want):
    assert got.tensors.keys() == want.tensors.keys()
    for key, tensor in want.tensors.items():
        assert got.tensors[key].dtype == tensor.dtype
        assert got.tensors[key].tobytes() == tensor.tobytes()
    for field in ("name", "config", "modules", "fingerprint", "metadata"):
        assert getattr(got, field) == getattr(want, field)


@pytest.fixture(params=SUFFIXES)
def path(request, tmp_path):
    return tmp_path / request.param


def write(path, *states):
    write_adapters(path, states, stores=STORES)


def read(path, names=None):
    return read_adapters(path, stores=STORES, names=names)


def test_several_adapters_in_one_file(path):
    states = [adapter("b"), adapter("a", fingerprint="", metadata={}), adapter("c", version="0.0.7")]
    write(path, *states)
    assert list_adapters(path, stores=STORES) == ["a", "b", "c"]
    got = read(path)
    for state, want in zip(got, [states[1], states[0], states[2]], strict=True):
        assert_equal(state, want)
    assert got[0].version
    assert got[2].version == "0.0.7"
    assert [state.name for state in read(path, ["c", "b"])] == ["b", "c"]
    assert read(path, []) == []


def test_the_same_adapters_through_the_other_store(tmp_path):
    for name, other in (SUFFIXES, SUFFIXES[::-1]):
        write(tmp_path / name, adapter())
        write(tmp_path / other, *read(tmp_path / name))
        assert_equal(read(tmp_path / other)[0], adapter())


def test_the_store_may_be_named(tmp_path):
    path = tmp_path / "file.bin"
    write_adapters(path, [adapter()], stores=STORES, store="npz")
    assert_equal(read_adapters(path, stores=STORES, store="npz")[0], adapter())
    with pytest.raises(LoratkError):
        read_adapters(path, stores=STORES, store="hdf5")


def test_an_unknown_adapter(path):
    write(path, adapter("a"), adapter("b"))
    with pytest.raises(UnknownNameError, match="holds no adapter named 'x', 'y'; it holds 'a', 'b'"):
        read(path, ["y", "a", "x"])


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=3),
    max_leaves=6,
)
parts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
plain = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)


@pytest.mark.parametrize("suffix", SUFFIXES)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=parts.filter(bool) | st.sampled_from([".", "..", "a/b", "%2F", "config"]),
    module=parts | st.sampled_from([".", "..", "a/b", "", "%", "config", "metadata"]),
    config=st.dictionaries(plain, json_values, max_size=3),
    extra=st.dictionaries(parts.map("x".__add__), json_values | st.sampled_from(["4", "true", "NaN", '"a"', ""]), max_size=3),
    metadata=st.dictionaries(plain, plain, max_size=3),
    fingerprint=plain,
)
def test_any_names_and_values(suffix, name, module, config, extra, metadata, fingerprint, tmp_path):
    extra = {key: value for key, value in extra.items() if "\0" not in str(value)}
    prefix = f"{module}." if module else ""
    want = AdapterState(name, config, {f"{prefix}w": np.ones(2)}, {module: {"method": "x", **extra}}, fingerprint, metadata)
    write(tmp_path / suffix, want)
    assert_equal(read(tmp_path / suffix)[0], want)


def test_damage_is_never_a_wrong_adapter(path, tmp_path):
    write(path, adapter())
    whole, broken = path.read_bytes(), tmp_path / f"broken{path.suffix}"
    for at in range(0, len(whole), max(1, len(whole) // 700)):
        for content in (whole[:at], whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :]):
            broken.write_bytes(content)
            with pytest.raises(LoratkError):
                read(broken)


class Watched(Hdf5Store):
    """Says which arrays are loaded."""

    def __init__(self):
        self.loaded = []

    @contextmanager
    def open(self, path):
        with super().open(path) as reader:
            load = reader.array
            reader.array = lambda name: (self.loaded.append(name), load(name))[1]
            yield reader


def test_only_the_named_adapter_is_loaded(tmp_path):
    store = Watched()
    write(tmp_path / "file.h5", adapter("a"), adapter("b"))
    assert list_adapters(tmp_path / "file.h5", stores={"hdf5": store}) == ["a", "b"]
    assert store.loaded == []
    read_adapters(tmp_path / "file.h5", stores={"hdf5": store}, names=["b"])
    assert len(store.loaded) == 4
    assert all(name.startswith("adapters/b/") for name in store.loaded)


class Doubtful(Hdf5Store):
    """Finds damage only where the whole file is checked."""

    @contextmanager
    def open(self, path):
        with super().open(path) as reader:
            reader.verify = self.damage
            yield reader

    def damage(self):
        raise FormatError("damaged where nobody looks")


def test_reading_all_checks_every_byte_and_reading_a_part_does_not(tmp_path):
    path = tmp_path / "file.h5"
    write(path, adapter("a"))
    store = Doubtful()
    assert len(store.read(path, ["adapters/a/head/bias"]).arrays) == 1
    assert len(read_adapters(path, stores={"hdf5": store}, names=["a"])) == 1
    for action in (store.read, lambda path: read_adapters(path, stores={"hdf5": store})):
        with pytest.raises(FormatError, match="damaged where nobody looks"):
            action(path)


# -- refusals on writing ----------------------------------------------------------------------------------------------


def module(**changes):
    return {"layers.0": {**adapter().modules["layers.0"], **changes}, "head": {"method": "bias"}}


def tensors(**changes):
    made = {**adapter().tensors, **{key.replace("__", "."): value for key, value in changes.items()}}
    return {key: value for key, value in made.items() if value is not None}


A, B = "layers.0.lora_A", "layers.0.lora_B"
FAULTS = [
    ("lora_B must have shape (2, 4), found (3, 4)", {"tensors": {**tensors(), B: np.ones((3, 4))}}),
    ("lora_A must have shape (6, 2), found (2, 6)", {"tensors": {**tensors(), A: np.ones((2, 6))}}),
    ("lora_A must have shape (6, 2), found (6,)", {"tensors": {**tensors(), A: np.ones(6)}}),
    ("tensor 'lora_B' is missing", {"tensors": {key: value for key, value in tensors().items() if key != B}}),
    ("module 'head' has a record but no tensors", {"tensors": {key: value for key, value in tensors().items() if key != "head.bias"}}),
    ("module 'other' has tensors ('bias') but no record", {"tensors": {**tensors(), "other.bias": np.ones(2)}}),
    ("rank must be a whole number from 1 up, found 0", {"modules": module(rank=0)}),
    ("rank must be a whole number from 1 up, found True", {"modules": module(rank=True)}),
    ("rank must be a whole number from 1 up, found 2.5", {"modules": module(rank=2.5)}),
    ("alpha must be a finite number, found '8'", {"modules": module(alpha="8")}),
    ("shape must be two whole numbers [d, k], found [6]", {"modules": module(shape=[6])}),
    ("method must be a name, found 3", {"modules": module(method=3)}),
    ("tensor 'layers.0.lora_A' has 12 values that are NaN or infinite", {"tensors": {**tensors(), A: np.full((6, 2), np.nan)}}),
    ("tensor 'layers.0.lora_A' has 12 values that are NaN or infinite", {"tensors": {**tensors(), A: np.full((6, 2), np.inf, np.float16)}}),
    ("metadata must be a dict of strings to strings", {"metadata": {"a": 1}}),
    ("config must be a", {"config": ["a list"]}),
]


@pytest.mark.parametrize(("said", "changes"), FAULTS)
def test_faults_are_refused_on_writing(said, changes, path):
    with pytest.raises(ConfigError) as caught:
        write(path, adapter(**changes))
    assert f"adapter 'mine': {said}" in str(caught.value).replace("module 'layers.0': ", "").replace("module 'head': ", "")
    assert not path.exists()


@pytest.mark.parametrize(
    ("said", "changes"),
    [
        ("alpha must be a finite number, found nan", {"modules": module(alpha=float("nan"))}),
        ("scaling must be a finite number, found inf", {"modules": module(scaling=float("inf"))}),
        ("config is not expressible as JSON", {"config": {"a": float("nan")}}),
        ("config is not expressible as JSON", {"config": {"a": np.zeros(2)}}),
        ("'note' is not expressible as JSON", {"modules": module(note={1, 2})}),
    ],
)
def test_what_json_cannot_say_is_refused_on_writing(said, changes, path):
    with pytest.raises(ConfigError) as caught:
        write(path, adapter(**changes))
    assert said in str(caught.value)


def test_names_are_given_once_and_not_empty(path):
    with pytest.raises(ConfigError, match=r"(?s)two adapters are named 'a'.*adapter '': an adapter needs a name"):
        write(path, adapter("a"), adapter(""), adapter("a"))


# -- refusals on reading ----------------------------------------------------------------------------------------------


@pytest.fixture
def edit(tmp_path):
    """Write a sound file, let the test change its arrays and strings, and give the error of reading it."""

    def edit(change):
        path = tmp_path / "edited.h5"
        write(path, adapter())
        contents = Hdf5Store().read(path)
        change(contents.arrays, contents.strings)
        Hdf5Store().write(path, contents.arrays, contents.strings)
        with pytest.raises(FormatError) as caught:
            read(path)
        return str(caught.value)

    return edit


BASE, LAYER = "adapters/mine", "adapters/mine/layers.0"


@pytest.mark.parametrize(
    ("said", "change"),
    [
        ("'lora_B' is missing", lambda arrays, strings: arrays.pop(f"{LAYER}/lora_B")),
        ("lora_A must have shape (6, 3), found (6, 2)", lambda arrays, strings: strings.update({f"{LAYER}/rank": "3"})),
        ("alpha must be a finite number, found 'NaN'", lambda arrays, strings: strings.update({f"{LAYER}/alpha": "NaN"})),
        ("alpha must be a finite number, found '1e999'", lambda arrays, strings: strings.update({f"{LAYER}/alpha": "1e999"})),
        ("scaling is missing", lambda arrays, strings: strings.pop(f"{LAYER}/scaling")),
        ("method must be a name, found None", lambda arrays, strings: strings.pop(f"{LAYER}/method")),
        ("config is missing", lambda arrays, strings: strings.pop(f"{BASE}/config")),
        ("config is not JSON: Infinity is not JSON", lambda arrays, strings: strings.update({f"{BASE}/config": '{"a": Infinity}'})),
        ("config is not JSON: a key is given twice", lambda arrays, strings: strings.update({f"{BASE}/config": '{"a": 1, "a": 2}'})),
        ("config must be a JSON object", lambda arrays, strings: strings.update({f"{BASE}/config": "[]"})),
        ("metadata must be a dict of strings", lambda arrays, strings: strings.update({f"{BASE}/metadata": '{"a": 1}'})),
        ("has 3 values that are NaN", lambda arrays, strings: arrays[f"{LAYER}/magnitude"].__setitem__(slice(3), np.nan)),
        ("has tensors ('w') but no record", lambda arrays, strings: arrays.update({f"{BASE}/new/w": np.ones(1)})),
        ("array 'adapters/mine/a/b/c' is not at", lambda arrays, strings: arrays.update({f"{BASE}/a/b/c": np.ones(1)})),
        ("array 'adapters/mine/a/b.c' is not at", lambda arrays, strings: arrays.update({f"{BASE}/a/b.c": np.ones(1)})),
        ("array 'adapters/x' is not at", lambda arrays, strings: arrays.update({"adapters/x": np.ones(1)})),
        ("'a%2E' should be written 'a.'", lambda arrays, strings: arrays.update({f"{BASE}/a%2E/w": np.ones(1)})),
        ("format version '2', and this loratk reads version '1'; update", lambda arrays, strings: strings.update(format_version="2")),
        ("format version None", lambda arrays, strings: strings.pop("format_version")),
    ],
)
def test_faults_are_refused_on_reading(said, change, edit):
    assert said in edit(change)


def test_every_fault_of_a_file_is_listed(edit):
    def change(arrays, strings):
        del arrays[f"{LAYER}/lora_B"]
        strings[f"{LAYER}/alpha"] = "NaN"
        strings["adapters/other/config"] = "{"
        strings["adapters/other/m/method"] = "lora"

    message = edit(change)
    assert message.count("\n  - ") == 4
    for said in ("'lora_B' is missing", "alpha must be", "adapter 'other': config is not JSON", "module 'm' has a record but no tensors"):
        assert said in message


def test_other_things_in_the_file_are_ignored(tmp_path):
    path = tmp_path / "more.h5"
    write(path, adapter())
    contents = Hdf5Store().read(path)
    arrays = {**contents.arrays, "lora/8/vars/lora_kernel_a": contents.arrays[f"{LAYER}/lora_A"]}
    strings = {**contents.strings, "other/note": "x", f"{BASE}/note": "x", f"{BASE}/a/b/c/d": "x"}
    Hdf5Store().write(path, arrays, strings)
    assert_equal(read(path)[0], adapter())


@pytest.mark.parametrize(
    ("said", "arrays", "strings"),
    [
        ("it says that its format is 'loratk-checkpoint'", {}, {"format": "loratk-checkpoint"}),
        ("it seems to be a keras-hub '.lora.h5'", {"lora/vars/rank": np.array(4), "lora/8/vars/lora_kernel_a": np.ones((2, 1))}, {}),
        ("it seems to be Keras model weights", {"layers/dense/vars/0": np.ones(2)}, {}),
        (
            "LoRA tensors in another layout, such as 'base_model.model.q.lora_A.weight'",
            {"base_model.model.q.lora_A.weight": np.ones(2)},
            {},
        ),
        ("it seems to be plain model weights", {"layers.0.weight": np.ones(2)}, {}),
        ("it holds 1 arrays in no layout known here ('x')", {"x": np.ones(2)}, {}),
    ],
)
def test_another_file_is_told_by_what_it_seems_to_be(said, arrays, strings, path):
    STORES["npz" if path.suffix == ".npz" else "hdf5"].write(path, arrays, strings)
    for action in (read, lambda path: list_adapters(path, stores=STORES)):
        with pytest.raises(FormatError) as caught:
            action(path)
        assert "is no adapter file" in str(caught.value)
        assert said in str(caught.value)


def test_numbers_written_by_tools_without_integers(tmp_path):
    path = tmp_path / "octave.h5"
    with h5py.File(path, "w") as file:
        file.attrs["format"], file.attrs["format_version"] = "loratk-adapter", 1
        file.create_group("adapters/x").attrs["config"] = "{}"
        layer = file.create_group("adapters/x/m")
        layer.attrs["method"], layer.attrs["rank"] = "lora", 2.0
        layer.attrs["alpha"], layer.attrs["scaling"] = np.array([4.0]), 2.0
        layer["lora_A"], layer["lora_B"] = np.ones((3, 2)), np.ones((2, 3))
    record = read(path)[0].modules["m"]
    assert (record["rank"], type(record["rank"]), record["alpha"]) == (2, int, 4.0)
