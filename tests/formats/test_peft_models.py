"""Models to PEFT folders and back."""

import numpy as np
import pytest
from peft_nets import DATA, PREFIX, Chain, Net, close, config, index, random_model, read, state_of, tensors

from loratk import AdapterState, LoraConfig, LoraModel, load_adapter, save_adapter
from loratk.errors import FormatError
from loratk.exchange.bake import dora_update
from loratk.io import write_safetensors
from loratk.lora import files
from loratk.nn import Module

CONFIGS = {
    "lora": LoraConfig(rank=2, alpha=3, targets=("*",), seed=1),
    "dora": LoraConfig(rank=2, alpha=3, targets=("embedding", "conv", "fc1", "fc2", "head"), method="dora"),
    "patterns": LoraConfig(rank=2, alpha=3, rank_pattern={"fc1": 3}, alpha_pattern={"head": 1}, rslora=True),
    "lora_only": LoraConfig(rank=2, alpha=3, targets=("conv", "fc1", "fc2"), bias="lora_only"),
    "all": LoraConfig(rank=2, alpha=3, targets=("fc1",), bias="all"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_models_go_to_peft_and_come_back(name, tmp_path):
    model = random_model(Net(), CONFIGS[name].replace(targets=("embedding", "conv", "all-linear")) if name == "lora" else CONFIGS[name])
    notes = files.save(model, tmp_path / "x", format="peft")
    assert not any("no base was given" in note for note in notes)
    again = LoraModel.from_file(Net(), tmp_path / "x")
    assert again.state().keys() == model.state().keys()
    np.testing.assert_allclose(again(index()).numpy(), model(index()).numpy(), rtol=1e-5, atol=1e-5)
    other = Net()
    other.head.weight.assign(other.head.weight.numpy() * 2)
    with pytest.raises(FormatError, match="was made for another base"):
        LoraModel(other).load(tmp_path / "x")


def test_models_with_other_names(tmp_path):
    model = random_model(Chain(), LoraConfig(rank=1, alpha=2, bias="all"))
    names = {"first": "net.0", "second": "net.2"}
    model.save(tmp_path / "x", format="peft", rename=names)
    assert config(tmp_path / "x")["target_modules"] == ["net.0", "net.2"]
    assert PREFIX + "net.0.base_layer.bias" in tensors(tmp_path / "x")[0]
    again = LoraModel.from_file(Chain(), tmp_path / "x", rename={"net.0": "first", "net.2": "second"})
    x = np.ones((2, 3), np.float32)
    np.testing.assert_allclose(again(x).numpy(), model(x).numpy(), rtol=1e-5)
    random_model(Chain(), LoraConfig(rank=1)).save(tmp_path / "y", format="peft", rename=names)
    with pytest.raises(FormatError, match=r"'net\.0' matches nothing"):
        LoraModel(Chain()).load(tmp_path / "y")


def test_a_model_that_the_adapter_does_not_fit_says_where(tmp_path):
    save_adapter(tmp_path / "x", state_of({"first": (3, 5, 2, 2.0), "second": (4, 2, 1, 2.0)}), format="peft")
    model = LoraModel(Chain())
    with pytest.raises(FormatError) as error:
        model.load(tmp_path / "x")
    assert "'first': the file has shape [3, 5], the model [3, 4]" in str(error.value)
    assert model.adapters == {}


def test_half_precision_is_widened_and_never_narrowed(tmp_path):
    state = state_of({"first": (3, 4, 2, 2.0)})
    for dtype in ("float16", "float64"):
        changed = AdapterState("default", {}, {name: array.astype(dtype) for name, array in state.tensors.items()}, state.modules)
        save_adapter(tmp_path / dtype, changed, format="peft")
    model = LoraModel.from_file(Chain(), tmp_path / "float16")
    np.testing.assert_array_equal(model.state()["first.lora_A"], state.tensors["first.lora_A"].astype(np.float16).astype(np.float32))
    with pytest.raises(FormatError, match="wrong dtype"):
        LoraModel(Chain()).load(tmp_path / "float64")


def test_fused_projections_go_to_peft_and_come_back(tmp_path):
    from loratk.nn import QKVProjection

    class Attention(Module):
        def __init__(self):
            self.qkv = QKVProjection(8, heads=2, rng=np.random.default_rng(0))

        def forward(self, x):
            return self.qkv(x)

    x = np.random.default_rng(2).standard_normal((3, 8)).astype(np.float32)
    for number, targets in enumerate((["qkv.q", "qkv.v"], ["qkv"])):
        model = random_model(Attention(), LoraConfig(rank=2, alpha=3, targets=targets))
        model.save(tmp_path / str(number), format="peft")
        assert set(read(tmp_path / str(number)).modules) == {"qkv"}
        again = LoraModel.from_file(Attention(), tmp_path / str(number))
        got, want = again(x), model(x)
        for left, right in zip(got, want, strict=True) if isinstance(got, tuple) else ((got, want),):
            np.testing.assert_allclose(left.numpy(), right.numpy(), rtol=1e-4, atol=1e-5)


def test_a_dora_update_is_what_peft_s_is(tmp_path):
    state = read(DATA / "dora")
    net = Net()
    update = dora_update(net.block.fc1.weight.numpy(), state.modules["block.fc1"], state.parameters()["block.fc1"])
    model = LoraModel.from_file(Net(), DATA / "dora")
    close(model.merged_state()["block.fc1.weight"] - net.block.fc1.weight.numpy(), update)


def test_a_bare_file_written_by_hand_needs_no_prefix_to_be_refused_elsewhere(tmp_path):
    write_safetensors(tmp_path / "x.safetensors", {"lin.lora_A.weight": np.zeros((2, 3), np.float32)}, {})
    with pytest.raises(FormatError):
        load_adapter(tmp_path / "x.safetensors")
