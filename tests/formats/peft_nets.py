"""The networks of tests/data/make_peft.py in loratk, and edits of adapter folders."""

import json
import shutil
from pathlib import Path

import numpy as np

from loratk import ops
from loratk.io import open_safetensors, write_safetensors
from loratk.nn import Conv2d, Embedding, Linear, Module

DATA = Path(__file__).parent.parent / "data" / "peft"
OUTPUTS = np.load(DATA / "outputs.npz")
PREFIX = "base_model.model."


class Block(Module):
    def __init__(self, rng):
        self.fc1, self.fc2 = Linear(5, 7, rng=rng), Linear(7, 4, bias=False, rng=rng)

    def forward(self, x):
        return self.fc2(ops.relu(self.fc1(x)))


class Net(Module):
    """The network that the golden folders are for, with its weights."""

    def __init__(self):
        rng = np.random.default_rng(0)
        self.embedding, self.conv = Embedding(11, 6, rng=rng), Conv2d(6, 5, 3, padding=1, rng=rng)
        self.block, self.head = Block(rng), Linear(4, 3, rng=rng)
        with np.load(DATA / "base.npz") as arrays:
            self.load_state_dict({name: arrays[name] for name in arrays if name != "index"})

    def forward(self, index):
        return self.head(self.block(self.conv(self.embedding(index))))


def index():
    with np.load(DATA / "base.npz") as arrays:
        return arrays["index"]


def base_file(folder):
    """The net's weights as a file."""
    with np.load(DATA / "base.npz") as arrays:
        from loratk.io import NpzStore

        NpzStore().write(folder / "base.npz", {name: arrays[name] for name in arrays if name != "index"}, {})
    return folder / "base.npz"


def tensors(folder):
    """All tensors of a folder's file, and those that are bfloat16."""
    with open_safetensors(folder / "adapter_model.safetensors") as file:
        return {name: file.array(name) for name in file.names()}, {name for name in file.names() if file.dtype(name) == "BF16"}


def config(folder):
    return json.loads((folder / "adapter_config.json").read_text())


def edited(source, folder, *, drop=(), add=None, rename=None, **fields):
    """A golden folder with tensors dropped, added or renamed (a function of the name), and with other fields in its config."""
    shutil.copytree(DATA / source, folder)
    arrays, half = tensors(folder)
    arrays = {name: array for name, array in arrays.items() if name not in drop} | (add or {})
    rename = rename or (lambda name: name)
    arrays = {rename(name): array for name, array in arrays.items()}
    write_safetensors(folder / "adapter_model.safetensors", arrays, {"format": "pt"}, half & arrays.keys())
    (folder / "adapter_config.json").write_text(json.dumps(config(folder) | fields))
    return folder
