"""Adapters of layers and methods that loratk does not run, from PEFT and back: the same update, the same bits."""

import warnings

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed; these tests compare with it")
peft = pytest.importorskip("peft", reason="PEFT is not installed; these tests compare with it")

from peft_pairs import INDEX, LORA, Theirs, close, moved, peft_load, peft_save  # noqa: E402
from torch import nn  # noqa: E402

from loratk import AdapterState, load_adapter, save_adapter  # noqa: E402
from loratk.exchange.factors import dense_update  # noqa: E402


class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate_up, self.down = nn.Parameter(torch.randn(3, 10, 6)), nn.Parameter(torch.randn(3, 6, 5))


class Others(nn.Module):
    def __init__(self):
        from transformers.pytorch_utils import Conv1D

        super().__init__()
        self.c1, self.c3, self.grouped, self.gpt = nn.Conv1d(6, 8, 3), nn.Conv3d(2, 4, 2), nn.Conv2d(4, 8, 3, groups=2), Conv1D(5, 6)
        self.attn, self.experts = nn.MultiheadAttention(8, 2), Experts()

    def forward(self, x):
        return x


@pytest.mark.parametrize(
    ("module", "config"),
    [
        ("c1", LORA(r=3, lora_alpha=5, target_modules=["c1"])),
        ("c3", LORA(r=3, lora_alpha=5, target_modules=["c3"])),
        ("gpt", LORA(r=3, lora_alpha=5, target_modules=["gpt"], fan_in_fan_out=True)),
        ("experts.gate_up", LORA(r=2, lora_alpha=5, target_modules=[], target_parameters=["experts.gate_up", "experts.down"])),
        ("experts.down", LORA(r=2, lora_alpha=5, target_modules=[], target_parameters=["experts.gate_up", "experts.down"])),
        ("attn", LORA(r=2, lora_alpha=5, target_modules=["attn"])),
        ("attn.out_proj", LORA(r=2, lora_alpha=5, target_modules=["attn"], alpha_pattern={"attn": 3})),
    ],
)
def test_updates_are_those_of_peft_both_ways(module, config, tmp_path):
    torch.manual_seed(0)
    base = Others()
    weights = {name: value.clone() for name, value in base.state_dict().items()}
    model = moved(peft.get_peft_model(base, config))
    peft_save(model, tmp_path / "x")
    reading = load_adapter(tmp_path / "x")
    got = dense_update(reading.states[0].modules[module], reading.states[0].parameters()[module])
    paths = {"experts.gate_up": "experts.base_layer", "experts.down": "experts", "attn.out_proj": "attn.base_layer.out_proj"}
    want = model.base_model.model.get_submodule(paths.get(module, module)).get_delta_weight("default").detach().numpy()
    if module.startswith("experts"):
        want = want.transpose(0, 2, 1)
    elif module != "gpt":  # kept input first
        want = want.reshape(*want.shape[:2], -1).transpose(2, 1, 0).reshape(-1, want.shape[0])
    close(got, want)
    save_adapter(tmp_path / "y", reading.states, format="peft")
    again = Others()
    again.load_state_dict(weights)
    theirs = peft_load(again, tmp_path / "y")
    for name, value in model.state_dict().items():
        assert torch.equal(value, theirs.state_dict()[name]), name


def test_a_grouped_convolution_both_ways(tmp_path):
    """PEFT's A takes all channels and its B is grouped: together a convolution without groups."""
    torch.manual_seed(0)
    with warnings.catch_warnings(action="ignore"):  # that it cannot be merged
        model = moved(peft.get_peft_model(Others(), LORA(r=4, lora_alpha=3, target_modules=["grouped"])))
    layer = model.base_model.model.grouped
    peft_save(model, tmp_path / "x")
    state = load_adapter(tmp_path / "x").states[0]
    update = dense_update(state.modules["grouped"], state.parameters()["grouped"])
    kernel = torch.from_numpy(update.reshape(3, 3, 4, 8).transpose(3, 2, 0, 1).astype(np.float32))
    x = torch.randn(2, 4, 6, 6)
    close(layer.base_layer(x) + nn.functional.conv2d(x, kernel), layer(x))
    save_adapter(tmp_path / "y", state, format="peft")
    assert (tmp_path / "y" / "adapter_model.safetensors").read_bytes() == (tmp_path / "x" / "adapter_model.safetensors").read_bytes()


def test_an_update_within_groups_goes_to_peft(tmp_path):
    """What a grouped kernel can take up, PEFT computes too, though its A takes all channels."""
    rng = np.random.default_rng(0)
    record = {
        "method": "lora",
        "layer_type": "conv2d",
        "shape": [18, 8],
        "rank": 4,
        "alpha": 2.0,
        "scaling": 0.5,
        "kernel": [3, 3],
        "groups": 2,
    }
    tensors = {"grouped.lora_A": rng.standard_normal((18, 4)), "grouped.lora_B": rng.standard_normal((2, 8))}
    state = AdapterState("default", {}, {name: array.astype(np.float32) for name, array in tensors.items()}, {"grouped": record})
    save_adapter(tmp_path / "x", state, format="peft")
    with warnings.catch_warnings(action="ignore"):  # that it cannot be merged
        model = peft.PeftModel.from_pretrained(Others(), tmp_path / "x")
    layer = model.base_model.model.grouped
    kernel = torch.from_numpy(
        dense_update(record, state.parameters()["grouped"]).reshape(3, 3, 2, 8).transpose(3, 2, 0, 1).astype(np.float32)
    )
    x = torch.randn(2, 4, 6, 6)
    close(layer.base_layer(x) + nn.functional.conv2d(x, kernel, groups=2), layer(x))


METHODS = {
    "adalora": peft.AdaLoraConfig(init_r=3, target_modules=["fc1", "fc2"], total_step=10),
    "vera": peft.VeraConfig(r=3, target_modules=["fc1", "fc2"]),
    "loha": peft.LoHaConfig(r=3, target_modules=["fc1", "conv"], use_effective_conv2d=True, alpha_pattern={"conv": 2}),
    "lokr": peft.LoKrConfig(r=1, target_modules=["fc1", "conv"]),
    "lokr of whole matrices": peft.LoKrConfig(r=8, target_modules=["fc1", "conv"]),
    "ia3": peft.IA3Config(target_modules=["fc1", "head"], feedforward_modules=["head"]),
    "tokens": LORA(r=2, target_modules=["fc1"], trainable_token_indices={"embedding": [1, 7]}),
}


@pytest.mark.parametrize("name", METHODS)
def test_other_methods_come_back_to_peft(name, tmp_path):
    model = moved(peft.get_peft_model(Theirs(), METHODS[name]))
    peft_save(model, tmp_path / "x")
    save_adapter(tmp_path / "y", load_adapter(tmp_path / "x").states, format="peft")
    close(peft_load(Theirs(), tmp_path / "y")(torch.from_numpy(INDEX)), model(torch.from_numpy(INDEX)))


def test_adalora_after_its_ranks_were_cut(tmp_path):
    model = peft.get_peft_model(Theirs(), peft.AdaLoraConfig(init_r=4, target_r=2, target_modules=["fc1", "fc2"], total_step=10))
    moved(model)
    model.peft_config["default"].rank_pattern = {f"block.{name}.lora_E.default": [True, False, True, False] for name in ("fc1", "fc2")}
    peft_save(model, tmp_path / "x")
    state = load_adapter(tmp_path / "x").states[0]
    assert state.modules["block.fc1"]["rank"] == 2
    save_adapter(tmp_path / "y", state, format="peft")
    with warnings.catch_warnings(action="ignore"):  # about its own rank_pattern
        one, two = (peft.PeftModel.from_pretrained(Theirs(), tmp_path / folder) for folder in "xy")
    close(two(torch.from_numpy(INDEX)), one(torch.from_numpy(INDEX)))
    held, scaling = state.parameters()["block.fc1"], state.modules["block.fc1"]["scaling"]
    update = held["adalora_B"] @ (held["adalora_A"] * held["adalora_E"]) * scaling
    close(update, one.base_model.model.block.fc1.get_delta_weight("default"))
