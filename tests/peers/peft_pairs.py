"""The same network here and there, and how PEFT saves and loads its adapters. Needs torch and peft."""

import warnings

import numpy as np
import peft
import torch
from torch import nn

from loratk import LoraModel, ops
from loratk.nn import Conv2d, Embedding, Linear, Module

LORA = peft.LoraConfig
ALL = ("embedding", "conv", "fc1", "fc2", "head")


class Block(Module):
    def __init__(self, rng):
        self.fc1, self.fc2 = Linear(5, 7, rng=rng), Linear(7, 4, bias=False, rng=rng)

    def forward(self, x):
        return self.fc2(ops.relu(self.fc1(x)))


class Ours(Module):
    def __init__(self):
        rng = np.random.default_rng(0)
        self.embedding, self.conv = Embedding(11, 6, rng=rng), Conv2d(6, 5, 3, padding=1, rng=rng)
        self.block, self.head = Block(rng), Linear(4, 3, rng=rng)

    def forward(self, index):
        return self.head(self.block(self.conv(self.embedding(index))))


class TorchBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(5, 7), nn.Linear(7, 4, bias=False)

    def forward(self, x):
        return self.fc2(torch.relu(self.fc1(x)))


class Theirs(nn.Module):
    """The same network with the same weights."""

    def __init__(self):
        super().__init__()
        self.embedding, self.conv, self.block, self.head = nn.Embedding(11, 6), nn.Conv2d(6, 5, 3, padding=1), TorchBlock(), nn.Linear(4, 3)
        self.load_state_dict({name: torch.from_numpy(array) for name, array in output_first(Ours().state_dict()).items()})

    def forward(self, index):
        x = self.conv(self.embedding(index).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.head(self.block(x))


def output_first(arrays):
    """loratk's arrays as torch keeps them."""
    axes = {"conv.weight": (3, 2, 0, 1), "embedding.weight": (0, 1)}
    return {
        name: np.ascontiguousarray(array.transpose(axes.get(name, (1, 0))) if array.ndim > 1 else array) for name, array in arrays.items()
    }


INDEX = np.random.default_rng(1).integers(0, 11, (2, 4, 5))


def close(got, want, tolerance=1e-5):
    got, want = (x.detach().float().numpy() if isinstance(x, torch.Tensor) else x for x in (got, want))
    np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance * np.abs(want).max())


def moved(model):
    """The model with random numbers in all that PEFT trains."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn(parameter.shape, dtype=parameter.dtype))
    return model


def random_model(config, **how):
    rng = np.random.default_rng(2)
    model = LoraModel.adapt(Ours(), config, **how)
    for name in model.adapters:
        model.load_state({key: rng.standard_normal(array.shape).astype(np.float32) for key, array in model.state(name).items()}, name)
    return model


def peft_save(model, path):
    with warnings.catch_warnings(action="ignore"):  # about biases, and models that are not on a hub
        model.save_pretrained(path)


def peft_load(model, path, **how):
    """PEFT's model with an adapter; a warning that keys are missing is an error."""
    with warnings.catch_warnings(action="error"):
        return peft.PeftModel.from_pretrained(model, path, **how)
