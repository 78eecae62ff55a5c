"""loralib's files: what its layers add to a weight, what has to be asked for, and that no file can make anything run."""

import json
import os
import pickle
import random
import struct
import zipfile
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch_files as torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loratk import load_adapter, save_adapter
from loratk.errors import ConfigError, FormatError, LoratkError, StoreError
from loratk.exchange import Request, formats_of
from loratk.exchange.base import input_first
from loratk.exchange.factors import dense_update
from loratk.io import NpzStore, SafetensorsStore
from loratk.plugins import default_registry

DATA = Path(__file__).parent.parent / "data"
RNG = np.random.default_rng(0)
A, B = RNG.standard_normal((2, 6)).astype(np.float32), RNG.standard_normal((5, 2)).astype(np.float32)
PAIR = {"q.lora_A": A, "q.lora_B": B}
ASKED = {"alpha": 16, "enable_lora": "c_attn=TFT,one=FTF", "conv": "conv=3,grouped=3/2"}
NO_BIAS = "q.bias,c_attn.bias,one.bias,conv.conv.bias,grouped.conv.bias"
FORMAT = formats_of(default_registry())["loralib"]


def read(path, **more):
    options = more.pop("options", {})
    return load_adapter(path, format="loralib", options=options, **more)


def write(path, content):
    path.write_bytes(content)
    return path


def refused(kind, path, **more):
    with pytest.raises(kind) as caught:
        read(path, **more)
    return str(caught.value)


def state_of(path, **more):
    (state,) = read(path, **more).states
    return state


# What loralib's layers are


def test_each_layer_adds_to_its_weight_what_loralib_adds():
    """Against differences that loralib 0.1.2 itself made by merging (tests/data/make_loralib.py)."""
    state = state_of(DATA / "loralib.pt", options=ASKED | {"ignore": NO_BIAS})
    want = np.load(DATA / "loralib.npz")
    for module, held in state.parameters().items():
        record = state.modules[module]
        if module == "norm":
            assert (record["method"], list(held)) == ("full", ["bias"])
            continue
        if record["method"] == "diff":
            np.testing.assert_allclose(held["weight"], want[module], rtol=0, atol=1e-5)
            continue
        got = dense_update(record, held)
        np.testing.assert_allclose(got, want[module] if module == "wte" else want[module].T, rtol=0, atol=1e-5, err_msg=module)
    kinds = {module: record.get("layer_type") for module, record in state.modules.items()}
    assert kinds == {
        "wte": "embedding", "q": "linear", "c_attn": "linear", "one": "linear", "conv": "conv2d", "grouped": "conv2d", "norm": None,
    }  # fmt: skip


def test_the_factors_are_its_numbers_to_the_last_bit(tmp_path):
    state = state_of(write(tmp_path / "x.pt", torch.saved(PAIR)), options={"alpha": 16})
    assert state.tensors["q.lora_A"].tobytes() == np.ascontiguousarray(A.T).tobytes()
    assert state.tensors["q.lora_B"].tobytes() == np.ascontiguousarray(B.T).tobytes()
    assert state.modules["q"] == {
        "method": "lora", "layer_type": "linear", "shape": [6, 5], "rank": 2, "alpha": 16.0, "scaling": 8.0,
        "alpha_source": "the option alpha",
    }  # fmt: skip


def test_a_fused_projection_is_one_exact_pair():
    """The alpha of all parts together goes with the rank of all, so that alpha / rank stays the scaling of each."""
    state = state_of(DATA / "loralib.pt", options=ASKED | {"ignore": NO_BIAS})
    record, b = state.modules["c_attn"], state.tensors["c_attn.lora_B"]
    assert (record["shape"], record["rank"], record["alpha"], record["scaling"]) == ([6, 12], 4, 32.0, 8.0)
    assert not b[:, 4:8].any()
    assert not b[:2, 8:].any()
    assert not b[2:, :4].any()


@pytest.mark.parametrize("rank", [2, 100])
def test_factors_for_a_convolution(rank):
    """At full rank they are the change itself; below it the note tells what is lost."""
    reading = read(DATA / "loralib.pt", options=ASKED | {"ignore": NO_BIAS, "conv_rank": rank})
    (state,), want = reading.states, np.load(DATA / "loralib.npz")
    for module, groups in (("conv", 1), ("grouped", 2)):
        record = state.modules[module]
        assert (record["rank"], record["scaling"], record.get("groups", 1)) == (rank, 1.0, groups)
        change = input_first(want[module]).reshape(-1, 6)
        blocks = np.split(change, groups, axis=1)
        least = np.sqrt(sum(np.sum(np.linalg.svd(block, compute_uv=False)[rank // groups :] ** 2) for block in blocks))
        got = np.linalg.norm(dense_update(record, state.parameters()[module]) - change)
        assert got == pytest.approx(least, abs=1e-4)
        said = f"module {module!r}: its change made factors of rank {rank}, {least / np.linalg.norm(change):.2%} of it lost"
        assert said in reading.notes


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 7), st.integers(1, 7), st.integers(1, 4), st.sampled_from(["float16", "float32", "float64", "bfloat16"]), st.data())
def test_any_shape_and_dtype(tmp_path_factory, d, k, r, dtype, data):
    exact = st.integers(-64, 64).map(lambda n: n / 8)
    a, b = (np.array(data.draw(st.lists(exact, min_size=n * r, max_size=n * r)), np.float32) for n in (d, k))
    a, b = a.reshape(r, d), b.reshape(k, r)
    keys = ["m.lora_A", "m.lora_B"]
    arrays = {key: array.astype("float32" if dtype == "bfloat16" else dtype) for key, array in zip(keys, (a, b), strict=True)}
    path = write(tmp_path_factory.mktemp("any") / "x.pt", torch.saved(arrays, keys if dtype == "bfloat16" else ()))
    state = state_of(path)
    assert (state.modules["m"]["shape"], state.modules["m"]["rank"]) == ([d, k], r)
    assert state.modules["m"].get("dtypes", {}) == (dict.fromkeys(["lora_A", "lora_B"], "bfloat16") if dtype == "bfloat16" else {})
    np.testing.assert_array_equal(state.tensors["m.lora_A"], a.T)
    np.testing.assert_array_equal(state.tensors["m.lora_B"], b.T)
    assert state.tensors["m.lora_A"].dtype.name == ("float32" if dtype == "bfloat16" else dtype)


# Asked for by name


def test_no_file_of_torch_is_read_unless_it_is_asked_for(tmp_path):
    path = write(tmp_path / "x.pt", torch.saved(PAIR))
    assert FORMAT.detect(path) is None
    with pytest.raises(FormatError, match="--from loralib reads an adapter in it"):
        load_adapter(path)
    folder = tmp_path / "folder"
    folder.mkdir()
    write(folder / "adapter_model.bin", torch.saved(PAIR))
    with pytest.raises(FormatError, match="only if its format is named \\(--from loralib\\)"):
        load_adapter(folder)
    assert FORMAT.adapters(path) == ["default"]
    assert [state.name for state in read(path, adapters=["default"]).states] == ["default"]


def test_it_is_never_written(tmp_path):
    assert not FORMAT.writable
    path = write(tmp_path / "x.pt", torch.saved(PAIR))
    with pytest.raises(ConfigError, match=r"reads loralib .* but does not write it"):
        save_adapter(tmp_path / "y.pt", state_of(path), format="loralib")
    assert list(tmp_path.iterdir()) == [path]


# What has to be asked


def test_alpha(tmp_path):
    path = write(tmp_path / "x.pt", torch.saved(PAIR | {"deep.v.lora_A": A, "deep.v.lora_B": B}))
    reading = read(path)
    assert any("alpha is 1 for 2 modules (loralib's default" in note and "option alpha" in note for note in reading.notes)
    assert [record["scaling"] for record in reading.states[0].modules.values()] == [0.5, 0.5]
    for value, want in [("8", [4, 4]), (8, [4, 4]), ("v=4,8", [4, 2]), ({"deep.*": 4, "q": "1e1"}, [5, 2]), ("q=6", [3, 0.5])]:
        state = state_of(path, options={"alpha": value})
        assert [record["scaling"] for record in state.modules.values()] == want, value
        assert [record["alpha"] for record in state.modules.values()] == [2 * scaling for scaling in want]
    wrong = {"nan": "'nan' must be a finite", "x=1": "'x' matches none of 'deep.v', 'q'", "two": "'two' is no number", "1e999": "finite"}
    for value, said in wrong.items():
        assert said in refused(ConfigError, path, options={"alpha": value})
    assert "no option 'alhpa'" in refused(ConfigError, path, options={"alhpa": 1})


def test_a_fused_projection_has_to_be_described(tmp_path):
    wide = {"c.lora_A": RNG.standard_normal((4, 6)), "c.lora_B": RNG.standard_normal((8, 2))}
    path = write(tmp_path / "x.pt", torch.saved(wide))
    assert "'c' has lora_A (4, 6) and lora_B (8, 2), a fused projection with 2 parts enabled" in refused(ConfigError, path)
    for value in ("TFT", "c=101", "c=True/False/True", [True, False, True], {"c": (1, 0, 1)}):
        assert state_of(path, options={"enable_lora": value}).modules["c"]["shape"] == [6, 12], value
    assert "not those of a projection with 3 parts" in refused(FormatError, path, options={"enable_lora": "TTT"})
    for value in ("FF", "maybe", "c="):
        assert "must have a T or an F" in refused(ConfigError, path, options={"enable_lora": value})


def test_a_convolution_that_does_not_fit(tmp_path):
    path = write(tmp_path / "x.pt", torch.saved({"c.lora_A": np.zeros((6, 12)), "c.lora_B": np.zeros((18, 6))}))
    uneven = write(tmp_path / "y.pt", torch.saved({"c.lora_A": np.zeros((4, 8)), "c.lora_B": np.zeros((3, 4))}))
    assert "are not those of a convolution" in refused(FormatError, uneven, options={"conv": "c=2/2"})
    half = {"c.lora_A": np.ones((6, 12), np.float32), "c.lora_B": np.ones((18, 6), np.float32)}
    record = state_of(write(uneven, torch.saved(half, half)), options={"conv": "c=3"}).modules["c"]
    assert "dtypes" not in record, "its change is float32"
    for value in ("c=5", "c=3/5"):
        assert "are not those of a convolution" in refused(FormatError, path, options={"conv": value})
    for value in ("c=0", "c=3/0", "c=x", "c"):
        assert "the option conv" in refused(ConfigError, path, options={"conv": value})
    assert state_of(path, options={"conv": "c=3"}).tensors["c.weight"].shape == (6, 4, 3, 3)


def test_look_up_tables(tmp_path):
    path = write(tmp_path / "x.pt", torch.saved(PAIR | {"tok.lora_A": A, "tok.lora_B": B}))
    assert state_of(path).modules["tok"]["layer_type"] == "linear"
    assert state_of(path, options={"embeddings": "tok"}).modules["tok"]["layer_type"] == "embedding"
    assert "'pos' matches none" in refused(ConfigError, path, options={"embeddings": "tok,pos"})


def test_biases_are_changes_of_the_bases(tmp_path):
    bias, old = np.arange(5, dtype=np.float32), np.float32([1, 1, 1, 1, 2])
    path = write(tmp_path / "x.pt", torch.saved(PAIR | {"q.bias": bias, "norm.bias": bias}))
    assert "'q' has a bias in place of the base's, and no base was given" in refused(ConfigError, path)
    assert "q.bias" not in state_of(path, options={"ignore": "q.bias"}).tensors
    base = tmp_path / "base.safetensors"
    SafetensorsStore().write(base, {"q.weight": np.zeros((5, 6), np.float32), "q.bias": old}, {"format": "pt"})
    state = state_of(path, base=base)
    np.testing.assert_array_equal(state.tensors["q.bias"], bias - old)
    assert state.modules["norm"] == {"method": "full", "orientation": "torch"}
    np.testing.assert_array_equal(state.tensors["norm.bias"], bias)
    odd = write(tmp_path / "y.pt", torch.saved(PAIR | {"q.bias": bias[:4]}))
    assert "its bias has 4 numbers, its columns are 5" in refused(FormatError, odd, base=base)
    NpzStore().write(base, {"q.weight": np.zeros((5, 6), np.float32)}, {})
    assert "has none of (5,)" in refused(ConfigError, path, base=base)


# Names, and what is around the tensors


def test_peft_files(tmp_path):
    names = {"base_model.model.l.0.q.lora_A.weight": A, "base_model.model.l.0.q.lora_B.weight": B,
             "base_model.model.l.0.q.lora_magnitude_vector": np.ones(5, np.float32),
             "base_model.model.wte.lora_embedding_A": A, "base_model.model.wte.lora_embedding_B": B,
             "base_model.model.lora.k.lora_A.mine.weight": A, "base_model.model.lora.k.lora_B.mine.weight": B,
             "base_model.model.lora.k.lora_B.mine.bias": np.ones(5, np.float32),
             "base_model.model.c.lora_A.weight": np.ones((4, 3, 3, 3)),
             "base_model.model.c.lora_B.weight": np.ones((6, 2, 1, 1))}  # fmt: skip
    path = write(tmp_path / "adapter_model.bin", torch.saved(names))
    config = tmp_path / "adapter_config.json"
    config.write_text(json.dumps({"peft_type": "LORA", "lora_alpha": 8, "use_rslora": True}))
    reading = read(tmp_path)
    (state,) = reading.states
    assert {module: (record["method"], record["layer_type"]) for module, record in state.modules.items()} == {
        "l.0.q": ("dora", "linear"), "wte": ("lora", "embedding"), "lora.k": ("lora", "linear"), "c": ("lora", "conv2d"),
    }  # fmt: skip
    assert state.modules["c"]["groups"] == 2
    assert state.modules["l.0.q"]["scaling"] == pytest.approx(8 / np.sqrt(2))
    assert set(state.parameters()["lora.k"]) == {"lora_A", "lora_B", "lora_bias"}
    assert any("'base_model.model', 'mine' left out of the names" in note for note in reading.notes)
    assert any("alpha is 8 for 4 modules (adapter_config.json)" in note for note in reading.notes)
    assert state_of(path, options={"alpha": 4}).modules["wte"]["scaling"] == 2
    for record, kind, said in [
        ({"lora_alpha": 8, "alpha_pattern": {"(a+)+": 4}}, ConfigError, "alpha_pattern"), ({"r": 4}, FormatError, "lora_alpha"),
        ({"lora_alpha": True}, FormatError, "a number"), ({"lora_alpha": 8, "peft_type": "LOHA"}, FormatError, "LOHA"),
        ([], FormatError, "JSON object"),
    ]:  # fmt: skip
        config.write_text(json.dumps(record))
        assert said in refused(kind, path)
    config.write_text('{"lora_alpha": NaN}')
    assert "NaN is not JSON" in refused(FormatError, path)
    assert state_of(path, options={"alpha": 4}).modules["wte"]["scaling"] == 2


def test_every_fault_of_the_names_at_once(tmp_path):
    names = {"a.lora_A": A, "b.weight": A, "c.lora_A.weight": A, "c.lora_A": A, "c.lora_B": B, "d..lora_A": A, "d..lora_B": B,
             "e.lora_B.x.y.weight": B}  # fmt: skip
    said = refused(FormatError, write(tmp_path / "x.pt", torch.saved(names)))
    for part in ("'a' has 'a.lora_A', but lacks 'a.lora_B'", "'b.weight', 'e.lora_B.x.y.weight' are no LoRA factors",
                 "'c.lora_A.weight' and 'c.lora_A' are both lora_A of module 'c'", "'d..lora_A' has an empty part"):  # fmt: skip
        assert part in said
    path = write(tmp_path / "y.pt", torch.saved(PAIR | {"a.lora_A": A, "head.weight": A}))
    assert list(state_of(path, allow_missing=["a.lora_B"], options={"ignore": "head.*"}).modules) == ["q"]
    assert "holds no LoRA factors" in refused(FormatError, write(path, torch.saved({"head.weight": A})), options={"ignore": "head.*"})
    assert "disagree about the rank" in refused(FormatError, write(path, torch.saved({"q.lora_A": A, "q.lora_B": B[:, :1].repeat(3, 1)})))
    assert "floating-point" in refused(FormatError, write(path, torch.saved({"q.lora_A": A.astype(np.int64), "q.lora_B": B})))
    assert "NaN or infinite" in refused(FormatError, write(path, torch.saved({"q.lora_A": A * np.nan, "q.lora_B": B})))
    assert "must both have 2 axes" in refused(FormatError, write(path, torch.saved({"q.lora_A": A[0], "q.lora_B": B})))


def test_a_dict_in_a_dict(tmp_path):
    inner = torch.dict_of({"q.lora_A": torch.tensor("0", "float32", 12, (2, 6)), "q.lora_B": torch.tensor("1", "float32", 10, (5, 2))})
    held = {"0": A.tobytes(), "1": B.tobytes()}
    path = write(tmp_path / "x.pt", torch.archive(torch.dict_of({"model_state_dict": inner, "epoch": b"K\3"}) + b".", held))
    reading = read(path)
    assert any("under the key 'model_state_dict'" in note for note in reading.notes)
    write(path, torch.archive(torch.dict_of({"one": inner, "two": inner}) + b".", held))
    assert "must hold one dict of tensors, found 2 in 'one' (dict), 'two' (dict)" in refused(FormatError, path)
    write(path, torch.archive(torch.tensor("0", "float32", 12, (2, 6)) + b".", held))
    assert "must hold a dict of tensors, found a Tensor" in refused(FormatError, path)


def test_views_of_storages(tmp_path):
    """Transposed, cut out, shared, and of the other byte order."""
    whole = np.arange(40, dtype=np.float32)
    a, b = torch.tensor("w", "float32", 40, (2, 6), (1, 2), 3), torch.tensor("w", "float32", 40, (5, 2), (4, 1), 20)
    path = write(tmp_path / "x.pt", torch.archive(torch.dict_of({"q.lora_A": a, "q.lora_B": b}) + b".", {"w": whole.tobytes()}))
    state = state_of(path)
    np.testing.assert_array_equal(state.tensors["q.lora_A"].T, np.lib.stride_tricks.as_strided(whole[3:], (2, 6), (4, 8)))
    np.testing.assert_array_equal(state.tensors["q.lora_B"].T, np.lib.stride_tricks.as_strided(whole[20:], (5, 2), (16, 4)))
    content = torch.archive(torch.dict_of({"q.lora_A": a, "q.lora_B": b}) + b".", {"w": whole.astype(">f4").tobytes()})
    with zipfile.ZipFile(write(path, content)) as file:
        members = {name: file.read(name) for name in file.namelist()} | {"archive/byteorder": b"big"}
    with zipfile.ZipFile(path, "w") as file:
        for name, raw in members.items():
            file.writestr(name, raw)
    assert state_of(path).tensors["q.lora_A"].tobytes() == state.tensors["q.lora_A"].tobytes()


# Nothing runs


CALL = b"cos\nsystem\n" + torch.tuple_of(torch.text("touch ran")) + b"R"


class Evil:
    def __init__(self, call):
        self.call = call

    def __reduce__(self):
        return self.call


EVIL = {
    "a call": b"\x80\x02" + CALL + b".",
    "a call among tensors": torch.dict_of({"q.lora_A": torch.tensor("0", "float32", 12, (2, 6)), "x": CALL}) + b".",
    "a call as a storage": torch.tuple_of(torch.text("storage"), CALL) + b"Q.",
    "a call in the attributes of a dict": b"ccollections\nOrderedDict\n)R" + torch.dict_of({"_metadata": CALL}) + b"b.",
    "by pickle itself": pickle.dumps(Evil((os.system, ("touch ran",)))),
    "by protocol 2": pickle.dumps(Evil((eval, ("open('ran', 'w')",))), protocol=2),
    "by protocol 0": pickle.dumps(Evil((os.system, ("touch ran",))), protocol=0),
    "a constructor": b"\x80\x02csubprocess\nPopen\n" + torch.tuple_of(torch.text("touch ran")) + b"\x81.",
    "an instance": b"(" + torch.text("touch ran") + b"ios\nsystem\n.",
    "an object": b"(cos\nsystem\n" + torch.text("touch ran") + b"o.",
    "an extension": b"\x82\x01.",
    "a name in a name": b"\x80\x04\x8c\x05torch\x8c\x14serialization.pickle\x93.",
    "torch's own loader": b"ctorch.serialization\n_load\n)R.",
    "another storage": torch.storage("0", "Quint8", 12) + b".",
    "OrderedDict of pairs": b"ccollections\nOrderedDict\n((" + torch.text("a") + b"K\1tttR.",
    "attributes of a dict": b"ccollections\nOrderedDict\n)R" + torch.dict_of({"__class__": b"K\1"}) + b"b.",
    "attributes of a tensor": torch.tensor("0", "float32", 12, (2, 6)) + b"}b.",
    "a persistent name": b"Pstorage\n.",
    "bytes": b"C\1a.",
    "a long number": b"\x8b\xff\xff\xff\x7f",
    "a buffer": b"\x97.",
}


@pytest.mark.parametrize("content", EVIL.values(), ids=EVIL.keys())
def test_nothing_that_a_file_names_is_called(content, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(FormatError, write(tmp_path / "x.pt", torch.archive(content, {"0": A.tobytes()})))
    refused(FormatError, write(tmp_path / "y.pt", content))
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["x.pt", "y.pt"]


def test_every_name_is_told(tmp_path):
    content = torch.dict_of({"a": CALL, "b": b"cbuiltins\neval\n", "c": b"ctorch.nn\nLinear\n)\x81}b"}) + b"."
    said = refused(FormatError, write(tmp_path / "x.pt", torch.archive(content, {})))
    assert [f"'{name}'" in said for name in ("os.system", "builtins.eval", "torch.nn.Linear")] == [True] * 3
    assert "never looked up" in said


def pair(**changes):
    """The opcodes of a dict of one pair, its lora_A as told."""
    given = {"key": "0", "dtype": "float32", "length": 12, "shape": (2, 6), "strides": (6, 1), "offset": 0} | changes
    return torch.dict_of({"q.lora_A": torch.tensor(**given), "q.lora_B": torch.tensor("1", "float32", 10, (5, 2))}) + b"."


BROKEN = {
    "no storage": (pair(key="7"), "has no entry 'archive/data/7'"),
    "a storage elsewhere": (pair(key="../0"), "has no entry"),
    "more numbers than bytes": (pair(length=13), "must have 13 numbers of float32, but has 48 bytes"),
    "another dtype": (pair(dtype="float64"), "must have 12 numbers of float64"),
    "a negative offset": (pair(offset=-1), "is not part of a storage"),
    "an offset too far": (pair(offset=1), "offset 1 and strides (6, 1) lead out"),
    "a stride too far": (pair(strides=(7, 1)), "lead out"),
    "a negative stride": (pair(strides=(-6, 1), offset=6), "not part of a storage"),
    "a negative size": (pair(shape=(-2, -6)), "not part of a storage"),
    "a size without end": (pair(shape=(1 << 200, 6)), "not part of a storage"),
    "many times nothing": (pair(shape=(1 << 62, 1 << 62, 0), strides=(0, 0, 0)), "not part of a storage"),
    "repeated numbers": (pair(shape=(1 << 40, 6), strides=(0, 0)), "not part of a storage"),
    "too many axes": (pair(shape=(1,) * 40, strides=(1,) * 40), "not part of a storage"),
    "sizes without strides": (pair(strides=(1,)), "the shape (2, 6) and the strides (1,)"),
    "a size that is none": (pair().replace(torch.number(6), b"\x88", 1), "the shape"),
    "a key twice": (b"}" + (torch.text("a") + b"K\1s") * 2 + b".", "each given once, found 'a'"),
    "a key that is a tuple": (b"})K\1s.", "a key must be text"),
    "a key without a value": (b"}(" + torch.text("a") + b"u.", "a key has no value"),
    "an empty stack": (b".", "a value is missing"),
    "below a mark": (b"K\1(\x85.", "a value is missing"),
    "no mark": (b"t.", "a mark is missing"),
    "no such memory": (b"h\1.", "nothing was kept under 1"),
    "no end": (b"}", "ends too early"),
    "a text beyond the end": (b"X\xff\xff\xff\xffa.", "ends too early"),
    "no text": (b"\x8c\1\xff.", "no UTF-8"),
    "a name without end": (b"c" + b"a" * 10_000, "a name does not end"),
    "an unknown opcode": (b"\xfe.", "the opcode b'\\xfe' has no place"),
    "attributes of a dict": (b"ccollections\nOrderedDict\n)R" + torch.dict_of({"__class__": b"K\1"}) + b"b.", "has the attributes"),
    "an instance of a dict": (b"ccollections\nOrderedDict\n)\x81.", "'collections.OrderedDict'"),
    "a number": (b"K\1.", "must hold a dict of tensors, found a int"),
    "a deep value": (b")" + b"\x85" * 1_000_000 + b".", "found a tuple"),
    "a list in itself": (b"]q\0h\0a.", "found a list"),
    "too much": (b"N" * (5 << 20), "above the 4194304"),
}  # fmt: skip


@pytest.mark.parametrize(("content", "said"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_pickle(content, said, tmp_path):
    path = write(tmp_path / "x.pt", torch.archive(content, {"0": A.tobytes(), "1": B.tobytes()}))
    got = refused(FormatError, path)
    assert said in got
    assert len(got) < 2000


def test_a_broken_archive(tmp_path):
    path, held = tmp_path / "x.pt", {"0": A.tobytes(), "1": B.tobytes()}
    with pytest.warns(UserWarning, match="Duplicate name"):
        twice = torch.archive(pair(), held, more={"archive/data/0": A.tobytes()})
    empty = torch.archive(pair(), held)
    sparse = empty[:-22] + empty[-22:].replace(b"\0\0", b"\0\0")
    cases = {
        "compressed or encrypted": torch.archive(pair(), held, compression=zipfile.ZIP_DEFLATED),
        "two entries 'archive/data/0'": twice,
        "needs one '<folder>/data.pkl', found 2": torch.archive(pair(), held, more={"other/data.pkl": pair()}),
        "needs one '<folder>/data.pkl', found 0": torch.archive(pair(), held, root="a/b"),
        "its byte order is b'?'": sparse.replace(b"little", b"middle").replace(b"archive/byteorder", b"archive/byteorder"),
        "is of the layout before torch 1.6": b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02",
        "is a bare pickle": pickle.dumps({"a": 1}),
        "begins with b'hello'": b"hello",
        "begins with b''": b"",
        "cannot read": b"PK\3\4" + b"\0" * 100,
    }  # fmt: skip
    for said, content in cases.items():
        got = refused(FormatError, write(path, content))
        assert said in got or (said.startswith("its byte order") and "cannot read" in got), said
    assert "No such file" in refused(StoreError, tmp_path / "nowhere")
    assert "adapter_model.bin" in refused(StoreError, tmp_path)


def test_entries_that_overlap(tmp_path):
    """A small file whose entries each hold all that follow must not become a large one in memory (Fifield 2019)."""
    count, tail = 30, bytes(4000)
    entries = []
    for at in reversed(range(count)):
        name, size = f"archive/data/{at}".encode(), len(tail)
        fields = struct.pack("<5H3L2H", 20, 0, 0, 0, 33, zlib.crc32(tail), size, size, len(name), 0)
        entries.append((name, fields, size))
        tail = b"PK\3\4" + fields + name + tail
    views = {f"m{at}.lora_A": torch.tensor(str(at), "uint8", size, (size,)) for at, (_, _, size) in enumerate(entries)}
    pickled = torch.dict_of(views) + b"."
    name, fields = b"archive/data.pkl", struct.pack("<5H3L2H", 20, 0, 0, 0, 33, zlib.crc32(pickled), len(pickled), len(pickled), 16, 0)
    content = tail + b"PK\3\4" + fields + name + pickled
    start, directory = len(content), b"PK\1\2\x14\0" + fields + struct.pack("<3H2L", 0, 0, 0, 0, len(tail)) + name
    offset = 0
    for name, fields, _ in reversed(entries):
        directory += b"PK\1\2\x14\0" + fields + struct.pack("<3H2L", 0, 0, 0, 0, offset) + name
        offset += 30 + len(name)
    end = b"PK\5\6" + struct.pack("<4H2LH", 0, 0, count + 1, count + 1, len(directory), start, 0)
    path = write(tmp_path / "x.pt", content + directory + end)
    with zipfile.ZipFile(path) as file:
        assert sum(entry.file_size for entry in file.infolist()) > 10 * path.stat().st_size
    assert "they overlap" in refused(FormatError, path)


def test_tensors_that_share_a_storage_over_and_over(tmp_path):
    many = {f"m{at}.lora_{half}": torch.tensor("0", "float32", 10_000, (100, 100)) for at in range(200) for half in "AB"}
    path = write(tmp_path / "x.pt", torch.archive(torch.dict_of(many) + b".", {"0": bytes(40_000)}))
    assert "more than 16 times the file's" in refused(FormatError, path)


def test_files_cut_or_changed_anywhere(tmp_path):
    """Each is refused, or read as something sound; any other exception is a bug."""
    whole, path = (DATA / "loralib.pt").read_bytes(), tmp_path / "x.pt"
    options = {"enable_lora": "c_attn=TFT", "ignore": NO_BIAS}
    chooser = random.Random(0)
    for at in range(0, len(whole), 37):
        with pytest.raises(LoratkError):
            read(write(path, whole[:at]), options=options)
    for _ in range(300):
        changed = bytearray(whole)
        for _ in range(chooser.choice([1, 1, 3, 20])):
            changed[chooser.randrange(len(whole))] = chooser.randrange(256)
        with suppress(LoratkError):
            read(write(path, bytes(changed)), options=options)


def test_pickles_changed_anywhere():
    """The pickle alone, where no checksum stands before it."""
    from loratk_plugins.loralib.tensor_pickle import read_pickle

    with zipfile.ZipFile(DATA / "loralib.pt") as file:
        whole = file.read("loralib/data.pkl")
    codes = sorted({whole[at] for at in range(len(whole))} | {ord(b"\x81"), ord(b"b"), ord(b"\x93"), ord(b"\x94")})
    chooser = random.Random(0)
    for _ in range(3000):
        changed = bytearray(whole)
        for _ in range(chooser.choice([1, 2, 8])):
            at = chooser.randrange(len(changed))
            match chooser.randrange(3):
                case 0:
                    changed[at] = chooser.choice(codes)
                case 1:
                    del changed[at : at + chooser.randrange(1, 9)]
                case _:
                    changed[at:at] = changed[chooser.randrange(len(changed)) :][: chooser.randrange(40)]
        with suppress(FormatError):
            read_pickle(bytes(changed))


def test_the_request_of_no_adapter():
    reading = FORMAT.read(DATA / "loralib.pt", Request(options=ASKED | {"ignore": NO_BIAS}, adapters=[]))
    assert reading.states == []
