"""keras-hub's `.lora.h5`, written: what comes back, one rank, layer numbers, and what is refused."""

import re
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras_files import GEMMA, LAYERS, loaded, module, pair, state_of, updates, written

from loratk.errors import ConfigError, FormatError, UnknownNameError
from loratk.exchange import AdapterState, detect_format, load_adapter, portable, save_adapter
from loratk.exchange.factors import dense_update

PAGE = Path(__file__).parents[2] / "docs" / "keras.md"

# Round trips


def test_what_was_read_is_written_again_bit_by_bit(tmp_path):
    for source in (GEMMA, LAYERS):
        state, _ = loaded(source)
        save_adapter(tmp_path / "copy.lora.h5", state)
        with h5py.File(source) as want, h5py.File(tmp_path / "copy.lora.h5") as got:
            names = []
            want["lora"].visititems(lambda name, item, names=names: names.append(name) if isinstance(item, h5py.Dataset) else None)
            assert len(names) == 9
            assert all((got["lora"][name][()] == want["lora"][name][()]).all() and got["lora"][name].chunks is None for name in names)
            assert got["lora/vars/rank"].dtype == np.int64
        again, _ = loaded(tmp_path / "copy.lora.h5")
        assert {name: array.tobytes() for name, array in again.tensors.items()} == {
            name: array.tobytes() for name, array in state.tensors.items()
        }


def test_names_alpha_and_config_come_back_from_what_loratk_wrote(tmp_path):
    config = {"rank": 4, "alpha": 8.0, "targets": ["q", "out.x"]}
    modules = {
        "layers__0__q": module(rank=4, scaling=2.0, keras_layer=7, note={"a": [1, "4"]}),
        "out__x": module(5, 3, rank=4, scaling=2.0, keras_layer=0),
    }
    state = state_of("my adapter/1", config, **modules)
    state = AdapterState(state.name, config, state.tensors, state.modules, "f00d", {"author": "me"})
    notes = save_adapter(tmp_path / "a.lora.h5", state)
    assert "scaling 2 of 2 modules multiplied into lora_B, for Keras has no alpha" in notes
    with h5py.File(tmp_path / "a.lora.h5") as file:
        assert (file["lora/7/vars/lora_kernel_b"][:] == 2 * state.tensors["layers.0.q.lora_B"]).all()
        assert file["loratk/layers/7"].attrs["name"] == "layers.0.q"
    found = detect_format(tmp_path / "a.lora.h5")
    assert (found.format.name, found.format.adapters(tmp_path / "a.lora.h5")) == ("keras", ["my adapter/1"])
    got, notes = loaded(tmp_path / "a.lora.h5")
    assert "2 layers named as loratk wrote them beside" in notes
    assert (got.name, got.config, got.fingerprint, got.metadata) == ("my adapter/1", config, "f00d", {"author": "me"})
    for name, record in state.modules.items():
        assert got.modules[name] == record | {"alpha_source": "kept beside by loratk"}
        for key in ("lora_A", "lora_B"):
            assert got.tensors[f"{name}.{key}"].tobytes() == state.tensors[f"{name}.{key}"].tobytes()
    assert load_adapter(tmp_path / "a.lora.h5", adapters=["my adapter/1"]).states
    with pytest.raises(UnknownNameError, match="'other'"):
        load_adapter(tmp_path / "a.lora.h5", adapters=["other"])
    renamed, _ = loaded(tmp_path / "a.lora.h5", options={"map": "7=b.q,0=b.x"})
    assert renamed.config["targets"] == ["b.x", "b.q"]


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from([np.float16, np.float32, np.float64]),
    st.floats(0.01, 100),
    st.integers(1, 5),
    st.integers(1, 6),
    st.integers(1, 6),
    st.booleans(),
)
def test_any_scaling_comes_back(tmp_path_factory, dtype, scaling, rank, d, k, rslora):
    path = tmp_path_factory.mktemp("h") / "a.lora.h5"
    record, held = module(d, k, rank, dtype=dtype, scaling=scaling, keras_layer=3)
    record["alpha"] = scaling * (rank**0.5 if rslora else rank)
    state = state_of(layers__3=(record, held))
    save_adapter(path, state)
    got, _ = loaded(path)
    assert (got.modules["layers.3"]["alpha"], got.modules["layers.3"]["scaling"]) == (record["alpha"], scaling)
    np.testing.assert_allclose(updates(got)["layers.3"], updates(state)["layers.3"], rtol=1e-5, atol=1e-5)
    loose = {name: array.astype(np.float32) for name, array in held.items()}
    assert all(np.abs(got.tensors[f"layers.3.{name}"] / loose[name] - 1).max() < 3e-7 for name in loose)


def test_a_zero_scaling_and_one_too_large(tmp_path):
    save_adapter(tmp_path / "a.lora.h5", state_of(layer_0=module(scaling=0.0)))
    got, _ = loaded(tmp_path / "a.lora.h5")
    assert got.modules["layer_0"]["alpha"] == 0
    assert not updates(got)["layer_0"].any()
    old = (tmp_path / "a.lora.h5").read_bytes()
    with pytest.raises(ConfigError, match=r"(?s)module 'layer_0': lora_B .* too large for float32.*module 'layer_1': lora_A"):
        save_adapter(tmp_path / "a.lora.h5", state_of(layer_0=module(scaling=1e39), layer_1=(*huge(),)))
    assert (tmp_path / "a.lora.h5").read_bytes() == old
    assert list(tmp_path.iterdir()) == [tmp_path / "a.lora.h5"]


def huge():
    record, held = module(dtype=np.float64)
    return record, {"lora_A": held["lora_A"] * 1e40, "lora_B": held["lora_B"]}


def test_half_precision_is_kept_where_the_file_has_it(tmp_path):
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed; without it no file with bfloat16 can be made")
    a, b = pair()
    path = written(tmp_path / "a.lora.h5", {0: (a.astype(np.float16), b.astype(np.float64)), 1: (a, b)})
    with h5py.File(path, "r+") as file:
        del file["lora/1/vars/lora_kernel_b"]
        file["lora/1/vars/lora_kernel_b"] = b.astype(ml_dtypes.bfloat16)
        file["lora/1/vars/lora_kernel_b"].attrs["dtype"] = "bfloat16"
    state, _ = loaded(path)
    assert [state.tensors[f"layer_0.lora_{half}"].dtype for half in "AB"] == [np.float16, np.float64]
    assert state.modules["layer_1"]["dtypes"] == {"lora_B": "bfloat16"}
    np.testing.assert_array_equal(state.tensors["layer_1.lora_B"], b.astype(ml_dtypes.bfloat16).astype(np.float32))
    notes = save_adapter(tmp_path / "b.lora.h5", state)
    assert any("bfloat16 becomes float32, exactly" in note for note in notes)


def test_bfloat16_without_ml_dtypes(tmp_path):
    a, b = pair()
    bits = (b.view(np.uint32) >> 16).astype(np.uint16)
    path = written(
        tmp_path / "a.lora.h5",
        {0: (a, bits.view("V2"))},
        edit=lambda file: file["lora/0/vars/lora_kernel_b"].attrs.create("dtype", "bfloat16"),
    )
    state, _ = loaded(path)
    np.testing.assert_array_equal(state.tensors["layer_0.lora_B"], (bits.astype(np.uint32) << 16).view(np.float32))
    with h5py.File(path, "r+") as file:
        del file["lora/0/vars/lora_kernel_b"].attrs["dtype"]
    with pytest.raises(FormatError, match=r"dtype \|V2"):
        load_adapter(path)


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from([(1,), (3,), (3, 2), (1, 1), (2, 1, 3)]),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 3),
    st.sampled_from([1, 2, 3]),
)
def test_convolutions_come_back(tmp_path_factory, window, channels, out, rank, groups):
    path = tmp_path_factory.mktemp("h") / "a.lora.h5"
    kind = {"layer_type": f"conv{len(window)}d", "kernel": list(window), "keras_layer": 5}
    record, held = module(int(np.prod(window)) * channels, out * groups, rank * groups, groups=groups, **kind)
    save_adapter(path, state_of(conv=(record, held)))
    got, _ = loaded(path)
    assert got.modules["conv"] == record | {"alpha_source": "kept beside by loratk"}
    assert all(got.tensors[f"conv.{key}"].tobytes() == array.tobytes() for key, array in held.items())
    with h5py.File(path) as file:
        a, b = (file[f"lora/5/vars/lora_kernel_{half}"][:] for half in "ab")
    assert a.shape == (*window, channels, rank * groups)
    np.testing.assert_allclose(a.reshape(-1, rank * groups) @ b, dense_update(record, held), atol=1e-5)


# One rank


def test_ranks_that_differ(tmp_path):
    config = {"rank": 2, "alpha": 2.0, "targets": ["layer_0", "layer_4"], "rank_pattern": {"layer_4": 3}, "alpha_pattern": {"layer_4": 1.5}}
    state = state_of("mine", config, layer_0=module(rank=2), layer_4=module(5, 7, rank=3, scaling=0.5))
    with pytest.raises(ConfigError, match=r"one rank, found 2 \('layer_0'\), 3 \('layer_4'\): --portable fills them up"):
        save_adapter(tmp_path / "a.lora.h5", state)
    for options, bake, kept in (({}, True, state), ({"rank": "5"}, False, state), ({}, False, portable(state))):
        notes = save_adapter(tmp_path / "a.lora.h5", kept, options=options, bake=bake)
        got, _ = loaded(tmp_path / "a.lora.h5")
        assert {record["rank"] for record in got.modules.values()} == {got.config["rank"]} == {int(options.get("rank", 3))}
        assert kept is not state or "module 'layer_0': rank 2 filled up to" in "\n".join(notes)
        for name, update in updates(state).items():
            np.testing.assert_allclose(updates(got)[name], update, atol=1e-6)
    with pytest.raises(ConfigError, match="module 'layer_4' has rank 3, above the 2 that was asked"):
        save_adapter(tmp_path / "a.lora.h5", state, options={"rank": 2})


# What cannot be written


def test_what_keras_cannot_hold_is_refused_by_name(tmp_path):
    record, held = module()
    dora = record | {"method": "dora"}, held | {"magnitude": np.ones(4, np.float32)}
    cases = {
        "DoRA magnitudes": state_of(layer_0=dora),
        "embeddings": state_of(layer_0=module(layer_type="embedding")),
        "changes of biases": state_of(layer_0=(record, held | {"bias": np.ones(4, np.float32)})),
        "whole modules": state_of(layer_0=module(), layer_1=({"method": "full"}, {"weight": np.ones((2, 2), np.float32)})),
        "'a' has no layer number": state_of(a=module()),
        "are all layer 3": state_of(a=module(keras_layer=3), layer_3=module()),
        "the shape of its kernel must be known": state_of(layer_0=module(layer_type="conv2d")),
        "a block of a fused projection": state_of(layer_0=module(columns=[0, 4])),
    }
    for said, state in cases.items():
        with pytest.raises(ConfigError, match=said):
            save_adapter(tmp_path / "a.lora.h5", state)
    with pytest.raises(ConfigError, match="several adapters in one file"):
        save_adapter(tmp_path / "a.lora.h5", [state_of("a", layer_0=module()), state_of("b", layer_0=module())])
    with pytest.raises(ConfigError, match="empty part"):
        save_adapter(tmp_path / "a.lora.h5", state_of(a__=module(keras_layer=0)))
    assert not list(tmp_path.iterdir())


def test_numbers_for_writing(tmp_path):
    state = state_of(a=module(), b__c=module(5, 3))
    save_adapter(tmp_path / "a.lora.h5", state, options={"map": "4=a,40=b.c"})
    with h5py.File(tmp_path / "a.lora.h5") as file:
        assert set(file["lora"]) == {"4", "40", "vars"}
    with pytest.raises(ConfigError, match="module 'b\\.c' has no layer number"):
        save_adapter(tmp_path / "a.lora.h5", state, options={"map": "4=a"})
    with pytest.raises(ConfigError, match=r"its kernel is \[6, 4\], and that of the layer \[6, 5\]"):
        save_adapter(tmp_path / "a.lora.h5", state_of(a=module()), options={"map": {4: {"name": "a", "kernel": [6, 5]}}})
    conv = state_of(conv=module(18, 4, layer_type="conv2d"))
    save_adapter(tmp_path / "a.lora.h5", conv, options={"map": {0: {"name": "conv", "kernel": [3, 2, 3, 4]}}})
    assert loaded(tmp_path / "a.lora.h5")[0].modules["conv"]["kernel"] == [3, 2]
    ffw = state_of(x__model__layers__2__mlp__up_proj=module(12, 8))
    save_adapter(tmp_path / "a.lora.h5", ffw, options={"family": "gemma"})
    assert loaded(tmp_path / "a.lora.h5", options={"family": "gemma"})[0].modules.keys() == {"decoder_block_2.ffw_gating_2"}
    with pytest.raises(ConfigError, match="does not fit the family"):
        save_adapter(
            tmp_path / "a.lora.h5",
            state_of(**{f"model__layers__{at}__mlp__up_proj": module(6 + at) for at in (0, 1)}),
            options={"family": "gemma"},
        )


def test_the_recipes_of_the_page(tmp_path, monkeypatch):
    """docs/keras.md: five lines of h5py read one, and write one that loratk reads."""
    _, read, write = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    state = state_of(a__b=module(scaling=4.0, keras_layer=7), c=module(12, 5, layer_type="einsum", kernel=[3, 4, 5], keras_layer=9))
    save_adapter("x.lora.h5", state)
    names = {"h5py": h5py, "np": np}
    exec(read, names)
    assert names["names"] == {7: "a.b", 9: "c"}
    np.testing.assert_allclose(names["updates"][7], updates(state)["a.b"], atol=1e-6)
    assert names["updates"][9].shape == (3, 4, 5)
    a, b = pair((3, 4, 5))
    exec(write, names | {"layers": {2: (a, b, 0.5)}})
    got, _ = loaded("y.lora.h5")
    np.testing.assert_allclose(updates(got)["layer_2"].reshape(3, 4, 5), 0.5 * a @ b, atol=1e-6)
