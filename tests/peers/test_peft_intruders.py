"""Intruders are those that PEFT's reduce_intruder_dimension finds."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed; these tests compare with it")
peft = pytest.importorskip("peft", reason="PEFT is not installed; these tests compare with it")
intruders = pytest.importorskip("peft.tuners.lora.intruders", reason="this PEFT does not look for intruders")

from loratk.algebra.intruders import Pretrained  # noqa: E402
from loratk.algebra.rounding import svd  # noqa: E402


@pytest.mark.parametrize(("top", "threshold"), [(10, 0.5), (4, 0.7), (30, 0.6)])
def test_as_many_in_each_layer(top, threshold):
    torch.manual_seed(0)
    sizes = [(40, 30), (30, 50), (50, 50)]
    net = torch.nn.Sequential(*(torch.nn.Linear(*size) for size in sizes))
    model = peft.get_peft_model(net, peft.LoraConfig(r=3, lora_alpha=6, target_modules=["0", "1", "2"]))
    for number, layer in enumerate(model.base_model.model):
        torch.nn.init.normal_(layer.lora_B["default"].weight, std=0.2 * (number + 1))
    said = []
    intruders.reduce_intruder_dimension(model, top_k=top, threshold_epsilon=threshold, logging_sink=said.append)
    want = [0 if line.endswith("No intruders") else int(line.rpartition(" ")[2]) for line in said if "ntruders" in line]
    got = []
    for layer in model.base_model.model:
        a, b = (getattr(layer, name)["default"].weight.detach().numpy().astype(np.float64).T for name in ("lora_A", "lora_B"))
        weight = layer.base_layer.weight.detach().numpy().T
        got.append(Pretrained(weight).intruders(svd((a, 2 * b)), leading=top, threshold=threshold).count)
    assert got == want
    assert sum(want) > 0
