"""The folders in tests/data/peft, written by PEFT itself, and what PEFT computes with them. Needs torch and peft; run it in this folder.

    python make_peft.py

base.npz holds the weights of `Net` under loratk's names and orientation, and an input; outputs.npz the net's output with each adapter, and
for layers that loratk does not run the update of their weight.
"""

import shutil
import warnings
from pathlib import Path

import numpy as np
import peft
import torch
from torch import nn

HERE = Path(__file__).parent / "peft"


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(5, 7), nn.Linear(7, 4, bias=False)

    def forward(self, x):
        return self.fc2(torch.relu(self.fc1(x)))


class Net(nn.Module):
    """An embedding, a convolution and linear layers: indices (n, h, w) -> (n, h, w, 3)."""

    def __init__(self):
        super().__init__()
        self.embedding, self.conv, self.block, self.head = nn.Embedding(11, 6), nn.Conv2d(6, 5, 3, padding=1), Block(), nn.Linear(4, 3)

    def forward(self, index):
        x = self.conv(self.embedding(index).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.head(self.block(x))


class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate_up, self.down = nn.Parameter(torch.randn(3, 10, 6)), nn.Parameter(torch.randn(3, 6, 5))


class Others(nn.Module):
    """Layers that loratk does not run: their adapters are read only."""

    def __init__(self):
        super().__init__()
        self.c1, self.grouped, self.c3 = nn.Conv1d(6, 8, 3), nn.Conv2d(4, 8, 3, groups=2), nn.Conv3d(2, 4, 2)
        self.attn, self.experts, self.lin = nn.MultiheadAttention(8, 2), Experts(), nn.Linear(6, 5)

    def forward(self, x):
        return x


LORA = peft.LoraConfig
ALL = ["embedding", "conv", "fc1", "fc2", "head"]
CASES = {
    "plain": LORA(r=2, lora_alpha=3, target_modules=["fc1", "fc2"]),
    "everywhere": LORA(r=2, lora_alpha=6, target_modules=ALL),
    "dora": LORA(r=2, lora_alpha=6, target_modules=ALL, use_dora=True),
    "patterns": LORA(
        r=4, lora_alpha=6, target_modules=r"(block\.fc.|conv|head)", rank_pattern={"fc1": 3, "^head": 2}, alpha_pattern={r"block\.fc.": 5}
    ),
    "rslora": LORA(r=3, lora_alpha=2, target_modules=["fc1", "conv"], use_rslora=True),
    "biases": LORA(r=2, lora_alpha=2, target_modules=["fc1", "fc2"], bias="all"),
    "lora_bias": LORA(r=2, lora_alpha=3, target_modules=["fc1", "conv"], lora_bias=True),
    "bfloat16": LORA(r=2, lora_alpha=3, target_modules=["fc1", "conv"]),
    "saved": LORA(r=2, lora_alpha=3, target_modules=["fc1"], modules_to_save=["head"], bias="lora_only"),
    "tokens": LORA(r=2, target_modules=["fc1"], trainable_token_indices={"embedding": [1, 7]}),
}
OTHERS = {
    "convolutions": LORA(r=4, lora_alpha=3, target_modules=["c1", "grouped", "c3"]),
    "attention": LORA(r=2, lora_alpha=3, target_modules=["attn", "lin"]),
    "experts": LORA(r=2, lora_alpha=3, target_modules=["lin"], target_parameters=["experts.gate_up", "experts.down"]),
    "adalora": peft.AdaLoraConfig(init_r=3, lora_alpha=5, target_modules=["lin"], total_step=10),
    "vera": peft.VeraConfig(r=3, target_modules=["lin"]),
    "loha": peft.LoHaConfig(r=3, alpha=4, target_modules=["lin", "c1"], use_effective_conv2d=True),
    "lokr": peft.LoKrConfig(r=1, alpha=4, target_modules=["lin", "grouped"], use_effective_conv2d=True),
    "ia3": peft.IA3Config(target_modules=["lin"], feedforward_modules=[]),
}


def moved(model: nn.Module) -> nn.Module:
    """The model with random numbers in all that PEFT trains."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn(parameter.shape))
    return model


def save(model: nn.Module, name: str) -> None:
    shutil.rmtree(HERE / name, ignore_errors=True)
    model.save_pretrained(HERE / name)
    for readme in (HERE / name).rglob("README.md"):
        readme.unlink()


def base_arrays(net: Net) -> dict[str, np.ndarray]:
    arrays = {name: value.detach().numpy().copy() for name, value in net.state_dict().items()}
    for name in ("block.fc1.weight", "block.fc2.weight", "head.weight"):
        arrays[name] = arrays[name].T
    arrays["conv.weight"] = arrays["conv.weight"].transpose(2, 3, 1, 0)
    return {name: np.ascontiguousarray(array) for name, array in arrays.items()}


def main() -> None:
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    net, index = Net(), torch.randint(0, 11, (2, 4, 5))
    np.savez(HERE / "base.npz", index=index.numpy(), **base_arrays(net))
    outputs = {}

    def fresh() -> Net:
        new = Net()
        new.load_state_dict(net.state_dict())
        return new

    for name, config in CASES.items():
        model = moved(peft.get_peft_model(fresh(), config))
        if name == "bfloat16":
            for key, parameter in model.named_parameters():
                if "lora_" in key:
                    parameter.data = parameter.data.bfloat16().float()
        outputs[name] = model(index).detach().numpy()
        if name == "bfloat16":
            for key, parameter in model.named_parameters():
                if "lora_" in key:
                    parameter.data = parameter.data.bfloat16()
        save(model, name)
    model = peft.get_peft_model(fresh(), LORA(r=2, target_modules=["fc1"]))
    model.add_adapter("lora", LORA(r=3, target_modules=["fc2", "head"]))
    model.set_adapter("lora")
    moved(model)
    outputs["several.lora"] = model(index).detach().numpy()
    model.set_adapter("default")
    moved(model)
    outputs["several.default"] = model(index).detach().numpy()
    save(model, "several")
    for name, config in OTHERS.items():
        torch.manual_seed(0)
        model = moved(peft.get_peft_model(Others(), config))
        save(model, name)
        for path, module in model.base_model.model.named_modules():
            if path != "grouped" and hasattr(module, "get_delta_weight") and name not in ("ia3", "attention"):
                outputs[f"{name}.{path}"] = module.get_delta_weight("default").detach().numpy()
    np.savez(HERE / "outputs.npz", **outputs)


if __name__ == "__main__":
    main()
