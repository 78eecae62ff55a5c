"""Write loralib.pt, by loralib 0.1.2 and torch 2.13, and loralib.npz, what its layers make of it: python tests/data/make_loralib.py

Needs torch and loralib, which loratk does not.
"""

from pathlib import Path

import loralib
import numpy as np
import torch

HERE = Path(__file__).parent
ALPHA = 16


class Net(torch.nn.Module):
    """One layer of each kind."""

    def __init__(self) -> None:
        super().__init__()
        self.wte = loralib.Embedding(11, 6, r=3, lora_alpha=ALPHA)
        self.q = loralib.Linear(6, 5, r=2, lora_alpha=ALPHA)
        self.c_attn = loralib.MergedLinear(6, 12, r=2, lora_alpha=ALPHA, enable_lora=[True, False, True])
        self.one = loralib.MergedLinear(6, 9, r=2, lora_alpha=ALPHA, enable_lora=[False, True, False])
        self.conv = loralib.Conv2d(4, 6, 3, r=2, lora_alpha=ALPHA)
        self.grouped = loralib.Conv2d(4, 6, 3, groups=2, r=2, lora_alpha=ALPHA)
        self.norm = torch.nn.LayerNorm(6)


def deltas(net: Net) -> dict[str, np.ndarray]:
    """What each layer adds to its weight when it merges, in the weight's own layout."""
    before = {name: weight.detach().clone() for name, weight in net.named_parameters() if name.endswith("weight")}
    net.eval()
    with torch.no_grad():  # Embedding.train merges B A without its transpose, and cannot run; this is its forward pass
        net.wte.weight += (net.wte.lora_B @ net.wte.lora_A).T * net.wte.scaling
    return {name.removesuffix(".weight").removesuffix(".conv"): (weight.detach() - before[name]).numpy()
            for name, weight in net.named_parameters() if name in before}  # fmt: skip


def main() -> None:
    torch.manual_seed(0)
    net = Net()
    net.wte.merge_weights = False
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if "lora_" in name:
                parameter.normal_()
            elif "weight" in name:
                parameter.zero_()  # so that the differences are exact
    torch.save(loralib.lora_state_dict(net, bias="all"), HERE / "loralib.pt")
    np.savez(HERE / "loralib.npz", **deltas(net))


if __name__ == "__main__":
    main()
