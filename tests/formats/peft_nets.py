"""The networks of tests/data/make_peft.py in loratk, edits of adapter folders, and states to write into them."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from loratk import AdapterState, LoraModel, load_adapter, ops, save_adapter
from loratk.errors import FormatError
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


def close(got, want):
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5 * np.abs(want).max())


def read(folder, **how):
    return load_adapter(folder, **how).states[0]


def state_of(shapes, *, method="lora", rng=None, **more):
    """A state of random linear modules: path -> (d, k, rank, alpha)."""
    rng = rng or np.random.default_rng(0)
    arrays, modules = {}, {}
    for module, (d, k, rank, alpha) in shapes.items():
        arrays |= {f"{module}.lora_A": rng.standard_normal((d, rank)), f"{module}.lora_B": rng.standard_normal((rank, k))}
        modules[module] = {"method": method, "layer_type": "linear", "shape": [d, k], "rank": rank, "alpha": alpha, "scaling": alpha / rank}
    return AdapterState("default", {}, {name: array.astype(np.float32) for name, array in arrays.items()}, modules, **more)


def written(tmp_path, state, **how):
    notes = save_adapter(tmp_path / "x", state, format="peft", **how)
    return config(tmp_path / "x"), notes


class Names:
    """A base of which names alone matter."""

    path = "base"

    def __init__(self, *names):
        self._names = names

    def modules(self):
        return list(self._names)

    def bias(self, module):
        return None


def faults_of(folder, **how):
    with pytest.raises(FormatError) as error:
        load_adapter(folder, **how)
    return str(error.value)


def pair(folder, alpha, value):
    """Write an adapter whose alpha tells which numbers belong to it."""
    state = state_of({"fc": (3, 4, 2, float(alpha))})
    state.tensors["fc.lora_A"][:] = value
    save_adapter(folder, state, format="peft")


def whole(folder):
    state = read(folder)
    return state.modules["fc"]["alpha"], float(state.tensors["fc.lora_A"][0, 0])


class Chain(Module):
    def __init__(self):
        rng = np.random.default_rng(0)
        self.first, self.second = Linear(3, 4, rng=rng), Linear(4, 2, rng=rng)

    def forward(self, x):
        return self.second(self.first(x))


def random_model(module, lora, **how):
    rng = np.random.default_rng(1)
    model = LoraModel.adapt(module, lora, **how)
    for name in model.adapters:
        model.load_state({key: rng.standard_normal(array.shape).astype(np.float32) for key, array in model.state(name).items()}, name)
    return model
