"""One file for loratk and keras-hub both: detected once, read by both, each number in it once, and sealed."""

import h5py
import numpy as np
import pytest
from keras_files import QUERY, loaded, module, pair, state_of, updates

from loratk.errors import FormatError
from loratk.exchange import detect_format, load_adapter, save_adapter
from loratk.io import Hdf5Store


@pytest.fixture
def dual(tmp_path):
    modules = {
        "q": module(12, 6, 2, layer_type="einsum", kernel=[3, 4, 6], equation=QUERY, scaling=4.0, keras_layer=10),
        "conv": module(12, 6, 2, layer_type="conv1d", kernel=[3], keras_layer=2),
        "out__a%/b": module(7, 3, 2, dtype=np.float16, keras_layer=30),
    }
    config = {"rank": 2, "alpha": 2.0, "targets": ["q", "conv", "out.a%/b"], "alpha_pattern": {"q": 8.0}}
    state = state_of("mine/1", config, **modules)
    notes = save_adapter(tmp_path / "dual.lora.h5", state, format="keras", options={"dual": "yes"})
    return tmp_path / "dual.lora.h5", state, notes


def test_the_dual_file_is_of_loratk_and_of_keras(dual):
    path, state, notes = dual
    assert "loratk and keras-hub both read it: 3 layers under /lora are links to the same numbers" in notes
    assert "scaling 4 of 1 modules multiplied into lora_B, for Keras has no alpha" in notes
    found = detect_format(path)
    assert (found.format.name, found.format.adapters(path)) == ("hdf5", ["mine/1"])
    got, _ = loaded(path)
    assert got.modules["q"]["scaling"] == 1
    assert got.modules["q"]["alpha_source"] == "alpha 8, scaling 4 folded into lora_B"
    assert sorted(got.config["targets"]) == ["conv", "out.a%/b", "q"]
    assert got.config["alpha_pattern"] == {}
    assert got.modules["q"]["kernel"] == [3, 4, 6]
    for name, update in updates(state).items():
        np.testing.assert_array_equal(updates(got)[name], update)
    as_keras, _ = loaded(path, format="keras", options={"three_axes": "conv1d"})
    for index, name in {10: "q", 2: "conv", 30: "out.a%/b"}.items():
        np.testing.assert_array_equal(updates(as_keras)[f"layer_{index}"], updates(state)[name])


def test_the_dual_file_holds_each_number_once_and_its_seal(dual):
    path, _, _ = dual
    with h5py.File(path) as file:
        assert file["lora/vars/rank"][()] == 2
        for index, name, shape in ((10, "q", (3, 4, 2)), (2, "conv", (3, 4, 2)), (30, "out.a%25%2Fb", (7, 2))):
            for half in "AB":
                mine, theirs = file[f"adapters/mine%2F1/{name}/lora_{half}"], file[f"lora/{index}/vars/lora_kernel_{half.lower()}"]
                assert (mine.id.get_offset(), mine.dtype) == (theirs.id.get_offset(), np.float32)
                assert isinstance(file.get(f"lora/{index}/vars/lora_kernel_{half.lower()}", getlink=True), h5py.HardLink)
            assert file[f"lora/{index}/vars/lora_kernel_a"].shape == shape
    with Hdf5Store().open(path) as reader:
        reader.verify()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(FormatError, match="not as it was written"):
        load_adapter(path)


def test_a_dual_file_is_written_again_from_what_was_read(dual, tmp_path):
    path, _, _ = dual
    state, _ = loaded(path)
    save_adapter(tmp_path / "again.lora.h5", state, format="keras", options={"dual": True})
    assert (tmp_path / "again.lora.h5").read_bytes() == path.read_bytes()
    save_adapter(tmp_path / "own.h5", state)
    got, _ = loaded(tmp_path / "own.h5")
    assert {name: array.tobytes() for name, array in got.tensors.items()} == {
        name: array.tobytes() for name, array in state.tensors.items()
    }


def test_groups_in_the_dual_file(tmp_path):
    state = state_of(conv=module(6, 4, 4, groups=2, layer_type="conv1d", kernel=[3], keras_layer=0))
    notes = save_adapter(tmp_path / "dual.lora.h5", state, format="keras", options={"dual": "yes"})
    assert "module 'conv': the factors of its 2 groups are written as those of one" in notes
    np.testing.assert_allclose(updates(loaded(tmp_path / "dual.lora.h5")[0])["conv"], updates(state)["conv"], rtol=1e-6)


def test_factors_with_axes_apart_must_fit_the_kernel(tmp_path):
    """docs/format.md: lora_A may lie with the axes of its kernel apart."""
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.attrs["format"], file.attrs["format_version"] = "loratk-adapter", "1"
        file.create_group("adapters/x").attrs["config"] = "{}"
        one = file.create_group("adapters/x/m")
        one.attrs["method"], one.attrs["layer_type"], one.attrs["kernel"] = "lora", "einsum", "[3, 4, 6]"
        one.attrs["rank"], one.attrs["alpha"], one.attrs["scaling"] = 2, 2.0, 1.0
        one["lora_A"], one["lora_B"] = pair((3, 4, 6))
    state, _ = loaded(tmp_path / "a.h5")
    np.testing.assert_array_equal(state.tensors["m.lora_A"], pair((3, 4, 6))[0].reshape(12, 2))
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        file["adapters/x/m"].attrs["kernel"] = "[4, 3, 6]"
    with pytest.raises(FormatError, match=r"lora_A must have shape \(d, 2\), found \(3, 4, 2\)"):
        load_adapter(tmp_path / "a.h5")
