"""Adapters of a model to and from files: the same bits, on the right base, or an error that lists every fault."""

import os
from dataclasses import replace

import numpy as np
import pytest

from loratk import AdapterState, LoraConfig, LoraModel, build_registry, read_adapters, write_adapters
from loratk.errors import ConfigError, FormatError, LoratkError, StateError, StoreError, UnknownNameError
from loratk.nn import MLP, Conv2d, Linear, Module

SIZES = [12, 10, 8]


def base(seed=1):
    return MLP(SIZES, rng=seed)


@pytest.fixture
def model():
    """Two adapters of two methods, with biases and a layer of another rank, and values that are not the initial ones."""
    rng = np.random.default_rng(0)
    model = LoraModel.adapt(base(), LoraConfig(rank=3, alpha=5, bias="all", rank_pattern={"2": 2}, seed=4), adapter="task-a")
    model.add_adapter("task-b", LoraConfig(rank=2, method="dora", targets="0", init="gaussian"))
    for name in model.adapters:
        model.load_state({key: rng.standard_normal(array.shape).astype(np.float32) for key, array in model.state(name).items()}, name)
    return model


@pytest.fixture(params=["adapters.h5", "adapters.npz"])
def path(request, tmp_path):
    return tmp_path / request.param


def same(left, right):
    assert left.keys() == right.keys()
    for name, want in left.items():
        assert right[name].dtype == want.dtype
        np.testing.assert_array_equal(right[name], want)


def test_round_trip_gives_the_same_bits_configs_and_outputs(model, path):
    model.save(path, metadata={"author": "A. Author", "note": "naïve\nlines"})
    again = LoraModel(base())
    assert again.load(path) == ["task-a", "task-b"]
    assert again.adapters == model.adapters
    for name in model.adapters:
        same(model.state(name), again.state(name))
    x = np.random.default_rng(5).standard_normal((7, SIZES[0])).astype(np.float32)
    for active in ("task-a", {"task-a": 0.5, "task-b": -2.0}):
        model.set_active(active)
        again.set_active(active)
        np.testing.assert_array_equal(again(x).numpy(), model(x).numpy())
    states = read_adapters(path, stores=build_registry().stores)
    assert [state.metadata for state in states] == [{"author": "A. Author", "note": "naïve\nlines"}] * 2
    assert states[0].fingerprint == model.fingerprint()


def test_from_file_activates_what_it_loads(model, path):
    model.save(path, adapters=["task-b"])
    again = LoraModel.from_file(base(), path)
    assert again.active == {"task-b": 1.0}
    assert list(again.adapters) == ["task-b"]


def test_a_part_of_a_file(model, path):
    model.save(path)
    again = LoraModel(base())
    assert again.load(path, adapters=["task-b"]) == ["task-b"]
    with pytest.raises(UnknownNameError, match="task-c"):
        LoraModel(base()).load(path, adapters=["task-c"])


def test_saving_while_merged_saves_the_adapters_and_the_original_fingerprint(model, path):
    want = model.fingerprint()
    model.merge("task-a")
    model.save(path)
    assert read_adapters(path, stores=build_registry().stores)[0].fingerprint == want
    model.unmerge()
    same(model.state("task-a"), (lambda again: again.load(path) and again.state("task-a"))(LoraModel(base())))


def test_another_base_is_refused_unless_asked_for(model, path):
    model.save(path)
    other = LoraModel(base(seed=2))
    with pytest.raises(FormatError, match=r"(?s)'task-a' was made for another base.*'task-b' was made for another base"):
        other.load(path)
    assert other.adapters == {}
    assert other.layers == {}
    assert other.load(path, check_base=False) == ["task-a", "task-b"]


def test_a_base_of_other_shapes_lists_every_fault_and_stays_as_it_was(model, path):
    model.save(path)
    other = LoraModel(MLP([12, 9, 8], rng=1))
    with pytest.raises(FormatError) as error:
        other.load(path, check_base=False)
    for fault in (
        "'0.lora_B' must be (3, 9), found (3, 10)",
        "'2.lora_A' must be (9, 2), found (10, 2)",
        "'0.bias' must be (9,), found (10,)",
    ):
        assert fault in str(error.value)
    assert other.layers == {}


def test_names_that_are_taken(model, path):
    model.save(path)
    with pytest.raises(StateError, match="task-a"):
        model.load(path)


def test_missing_unexpected_and_misshapen_tensors_are_listed_together(model, path):
    model.save(path)
    stores = build_registry().stores
    state = read_adapters(path, stores=stores, names=["task-b"])[0]
    tensors = dict(state.tensors)
    tensors["0.magnitude"] = tensors["0.magnitude"][:-1]
    tensors["0.extra"] = tensors["0.lora_A"]
    write_adapters(path, [AdapterState("task-b", state.config, tensors, state.modules, state.fingerprint)], stores=stores)
    with pytest.raises(FormatError) as error:
        LoraModel(base()).load(path)
    assert "unexpected: '0.extra' (12, 2)" in str(error.value)
    assert "'0.magnitude' must be (10,), found (9,)" in str(error.value)


def test_a_method_that_is_not_installed(model, path):
    stores = build_registry().stores
    model.save(path, adapters=["task-b"])
    state = read_adapters(path, stores=stores)[0]
    write_adapters(path, [AdapterState("x", state.config | {"method": "nora"}, state.tensors, state.modules)], stores=stores)
    with pytest.raises(FormatError, match="'nora'; a plugin that provides it may not be installed"):
        LoraModel(base()).load(path)


def test_records_that_contradict_the_config(model, path):
    stores = build_registry().stores
    model.save(path, adapters=["task-b"])
    state = read_adapters(path, stores=stores)[0]
    modules = {name: record | {"scaling": 3.0} for name, record in state.modules.items()}
    write_adapters(path, [AdapterState("x", state.config, state.tensors, modules, state.fingerprint)], stores=stores)
    with pytest.raises(FormatError, match=r"the file says scaling = 3\.0, its config makes it 4\.0"):
        LoraModel(base()).load(path)


def test_nothing_to_save_and_nowhere_to_save_to(model, tmp_path):
    with pytest.raises(StateError, match="no adapter"):
        LoraModel(base()).save(tmp_path / "x.h5")
    with pytest.raises(StoreError, match="missing"):
        model.save(tmp_path / "missing" / "x.h5")
    with pytest.raises(LoratkError, match="suffix"):
        model.save(tmp_path / "x.unknown")
    with pytest.raises(StoreError):
        model.load(tmp_path / "nothing.h5")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("suffix", [".h5", ".npz"])
def test_a_cut_or_flipped_file_never_gives_a_wrong_adapter(model, tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    model.save(path, adapters=["task-b"])
    whole, broken = path.read_bytes(), tmp_path / f"b{suffix}"
    places = np.random.default_rng(0).integers(0, len(whole), 150)
    for place in places:
        for wrong in (whole[:place], whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :]):
            broken.write_bytes(wrong)
            other = LoraModel(base())
            with pytest.raises(LoratkError):
                other.load(broken)
            assert other.adapters == {}


def test_faults_of_the_base_and_of_all_adapters_are_listed_together(model, path):
    model.save(path)
    other = LoraModel(MLP([12, 9, 8], rng=1))
    with pytest.raises(FormatError) as error:
        other.load(path)
    text = str(error.value)
    assert text.count("was made for another base") == 2
    assert "adapter 'task-a': '0': the file says shape = [12, 10]" in text
    assert "adapter 'task-b': '0': the file says shape = [12, 10]" in text
    assert other.adapters == {}
    assert other.layers == {}


def test_a_single_name_is_a_name(model, path):
    model.save(path, adapters="task-b")
    assert LoraModel(base()).load(path) == ["task-b"]
    model.save(path)
    assert LoraModel(base()).load(path, adapters="task-a") == ["task-a"]
    with pytest.raises(UnknownNameError, match="'task'"):
        model.save(path, adapters="task")


def test_other_names_in_the_file(model, path):
    model.save(path, rename={"0": "encoder.fc", "2": "encoder.out"})
    assert {module for state in read_adapters(path, stores=build_registry().stores) for module in state.modules} == {
        "encoder.fc",
        "encoder.out",
    }
    again = LoraModel(base())
    assert again.load(path, rename={"encoder.fc": "0", "encoder.out": "2"}) == ["task-a", "task-b"]
    for name in model.adapters:
        same(model.state(name), again.state(name))
    with pytest.raises(ConfigError, match=r"'decoder' is neither a module nor the beginning of one"):
        LoraModel(base()).load(path, rename={"decoder": "0"})


def test_a_format_by_name_and_its_options(model, tmp_path):
    model.save(tmp_path / "adapters.bin", format="hdf5")
    assert LoraModel(base()).load(tmp_path / "adapters.bin") == ["task-a", "task-b"]
    with pytest.raises(FormatError):
        LoraModel(base()).load(tmp_path / "adapters.bin", format="npz")
    with pytest.raises(UnknownNameError, match="no format named 'nothing'"):
        model.save(tmp_path / "x", format="nothing")
    with pytest.raises(ConfigError, match="has no option 'nothing'"):
        model.save(tmp_path / "x.npz", options={"nothing": 1})


def test_the_record_of_a_convolution_has_its_window(tmp_path):
    class Net(Module):
        def __init__(self):
            self.conv = Conv2d(3, 4, (3, 1), rng=0)

    adapter_path = tmp_path / "conv.npz"
    model = LoraModel.adapt(Net(), LoraConfig(rank=2, targets="conv"))
    model.save(adapter_path)
    record = read_adapters(adapter_path, stores=build_registry().stores)[0].modules["conv"]
    assert (record["layer_type"], record["shape"], record["kernel"]) == ("conv2d", [9, 4], [3, 1])
    assert LoraModel(Net()).load(adapter_path) == ["default"]


def test_a_file_without_a_config_gets_the_one_that_means_its_modules_alone(tmp_path):
    class Net(Module):
        def __init__(self):
            self.fc, self.block = Linear(3, 4, rng=0), MLP([4, 4, 2], rng=0)
            self.inner = Module()
            self.inner.fc = Linear(3, 4, rng=1)

    model = LoraModel.adapt(Net(), LoraConfig(rank=1, targets="re:fc"))
    model.save(tmp_path / "x.npz")
    stores = build_registry().stores
    (state,) = read_adapters(tmp_path / "x.npz", stores=stores)
    write_adapters(tmp_path / "x.npz", [replace(state, config={})], stores=stores)
    again = LoraModel(Net())
    again.load(tmp_path / "x.npz")
    assert list(again.layers) == ["fc"]
    same(model.state(), again.state())
    modules = {"fc": state.modules["fc"] | {"layer_type": "embedding", "scaling": 3.0}}
    write_adapters(tmp_path / "x.npz", [replace(state, config={}, modules=modules)], stores=stores)
    with pytest.raises(FormatError, match="'fc' is of the layer type 'embedding' in the file, and 'linear' in the model"):
        LoraModel(Net()).load(tmp_path / "x.npz")
