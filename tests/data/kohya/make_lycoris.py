"""Golden files by LyCORIS: `pip install torch==2.13.0 lycoris-lora==4.1.3 safetensors`, then `python make_lycoris.py`.

For each algorithm and layer one module's state dict under `lora_unet_m`, with LyCORIS's own update as `want.diff` (torch's order), and for
DoRA the base's weight as `want.base` and the merged one as `want.merged`. The tests take these out before they read the file.
"""

from pathlib import Path

import torch
from lycoris.modules.glora import GLoRAModule
from lycoris.modules.ia3 import IA3Module
from lycoris.modules.locon import LoConModule
from lycoris.modules.loha import LohaModule
from lycoris.modules.lokr import LokrModule
from safetensors.torch import save_file

HERE = Path(__file__).parent


def layer(kind):
    if kind == "wide":
        return torch.nn.Linear(24, 20)
    return torch.nn.Linear(6, 10) if kind == "linear" else torch.nn.Conv2d(6, 10, 1 if kind == "conv1" else 3)


CASES = {
    "lora-linear": (LoConModule, "linear", {}),
    "lora-rslora": (LoConModule, "linear", {"rs_lora": True}),
    "lora-dora": (LoConModule, "linear", {"weight_decompose": True}),
    "lora-dora-in": (LoConModule, "linear", {"weight_decompose": True, "wd_on_out": False}),
    "locon-conv1": (LoConModule, "conv1", {}),
    "locon-conv3": (LoConModule, "conv3", {}),
    "locon-tucker": (LoConModule, "conv3", {"use_tucker": True}),
    "locon-dora": (LoConModule, "conv3", {"weight_decompose": True}),
    "loha-linear": (LohaModule, "linear", {}),
    "loha-conv3": (LohaModule, "conv3", {}),
    "loha-tucker": (LohaModule, "conv3", {"use_tucker": True}),
    "loha-dora": (LohaModule, "linear", {"weight_decompose": True}),
    "lokr-linear": (LokrModule, "linear", {"factor": 2, "lora_dim": 1}),
    "lokr-both": (LokrModule, "wide", {"factor": 4, "decompose_both": True, "lora_dim": 1}),
    "lokr-full": (LokrModule, "linear", {"factor": 2, "full_matrix": True}),
    "lokr-conv3": (LokrModule, "conv3", {"factor": 2, "lora_dim": 1}),
    "lokr-tucker": (LokrModule, "conv3", {"factor": 2, "lora_dim": 1, "use_tucker": True}),
    "glora-linear": (GLoRAModule, "linear", {}),
    "ia3-linear": (IA3Module, "linear", {}),
}


def update(module, shape):
    """What forward adds: get_diff_weight, but for LoHa and LoKr get_weight, which the other multiplies by the scale a second time."""
    return module.get_weight(shape) if isinstance(module, LohaModule | LokrModule) else module.get_diff_weight(1, shape)[0]


def make(name, number):
    cls, kind, options = CASES[name]
    torch.manual_seed(number)
    base = layer(kind)
    module = cls("lora_unet_m", base, 1.0, **({"lora_dim": 2, "alpha": 1.5} | options))
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim():
                parameter.copy_(torch.randn_like(parameter))
        kept = module.custom_state_dict() or module.state_dict()
        state = {f"lora_unet_m.{key}": value for key, value in kept.items()}
        state["want.base"] = base.weight
        state["want.diff"] = update(module, base.weight.shape)
        if getattr(module, "wd", False):
            state["want.merged"] = module.apply_weight_decompose(base.weight + state["want.diff"])
    save_file({key: value.detach().contiguous().clone() for key, value in state.items()}, HERE / f"{name}.safetensors")
    print(name, {key: tuple(value.shape) for key, value in state.items()})


if __name__ == "__main__":
    for number, name in enumerate(CASES):
        make(name, number)
