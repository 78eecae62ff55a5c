"""Files of diffusers for the tests, and the updates that loratk's records make of them."""

import json
from pathlib import Path

import numpy as np

from loratk.exchange import AdapterState, load_adapter
from loratk.exchange.factors import dense_update
from loratk.io import write_safetensors

GOLDEN = Path(__file__).parent.parent / "data/diffusers"
WEIGHTS = "pytorch_lora_weights.safetensors"
A, B = np.random.default_rng(0).standard_normal((2, 4)), np.random.default_rng(1).standard_normal((5, 2))


def config(component="unet", **fields):
    return {"format": "pt", "lora_adapter_metadata": json.dumps({f"{component}.{key}": value for key, value in fields.items()})}


def write(path, tensors, metadata=None, bfloat16=()):
    write_safetensors(path, {key: np.asarray(array) for key, array in tensors.items()}, metadata or {}, bfloat16)
    return path


def read(tmp_path, tensors, metadata=None, **options):
    reading = load_adapter(write(tmp_path / "x.safetensors", tensors, metadata), **options)
    return reading.states[0], reading.notes


def pair(module="unet.a.to_q", a=A, b=B):
    return {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}


def torch_order(state, module):
    record = state.modules[module]
    matrix = dense_update(record, state.parameters()[module])
    return np.moveaxis(matrix.reshape(*record.get("kernel", []), -1, matrix.shape[1]), (-1, -2), (0, 1))


def plain(*modules, scaling=1.0, **changes):
    record = {"method": "lora", "layer_type": "linear", "shape": [4, 5], "rank": 2, "alpha": 2 * scaling, "scaling": scaling} | changes
    tensors = {f"{module}.{key}": array for module in modules for key, array in {"lora_A": A.T, "lora_B": B.T}.items()}
    return AdapterState("a", {}, tensors, {module: dict(record) for module in modules})
