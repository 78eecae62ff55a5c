"""Files of keras-hub for the tests: those that it wrote (tests/data/make_keras.py), and some by hand."""

from pathlib import Path

import h5py
import numpy as np

from loratk.exchange import AdapterState, load_adapter
from loratk.exchange.factors import dense_update

DATA = Path(__file__).parents[1] / "data" / "keras"
GEMMA, LAYERS = DATA / "gemma.lora.h5", DATA / "layers.lora.h5"
QUERY, OUTPUT = "btd,ndh->btnh", "btnh,nhd->btd"
HF = {"family": "gemma", "names": "hf"}
GEMMA_NAMES = {8: "decoder_block_0.attention.value", 10: "decoder_block_0.attention.query"} | {
    19: "decoder_block_1.attention.value", 21: "decoder_block_1.attention.query",
}  # fmt: skip


def kernels(file):
    """{layer number: (kernel without LoRA, kernel with it)} of a file, as Keras had them."""
    with np.load(DATA / "kernels.npz") as held:
        numbers = {int(name.split("/")[1]) for name in held if name.startswith(f"{file}/")}
        return {number: (held[f"{file}/{number}/base"], held[f"{file}/{number}/merged"]) for number in sorted(numbers)}


def loaded(path, **more):
    reading = load_adapter(path, **more)
    (state,) = reading.states
    return state, reading.notes


def updates(state):
    return {module: dense_update(state.modules[module], held) for module, held in state.parameters().items()}


def module(d=6, k=4, rank=2, *, seed=0, dtype=np.float32, scaling=1.0, groups=1, **more):
    """A record and its factors."""
    rng = np.random.default_rng(seed)
    record = {"method": "lora", "layer_type": "linear", "shape": [d, k], "rank": rank, "alpha": scaling * rank, "scaling": scaling} | more
    record |= {"groups": groups} if groups > 1 else {}
    held = {"lora_A": rng.standard_normal((d, rank)).astype(dtype), "lora_B": rng.standard_normal((rank // groups, k)).astype(dtype)}
    return record, held


def state_of(name="mine", config=None, **modules):
    """A state of modules named layer_<n>, or as the keywords say with __ for dots."""
    named = {key.replace("__", "."): value for key, value in modules.items()}
    tensors = {f"{path}.{key}": array for path, (_, held) in named.items() for key, array in held.items()}
    return AdapterState(name, config or {}, tensors, {path: record for path, (record, _) in named.items()})


def written(path, layers, rank=2, edit=None):
    """A `.lora.h5` by h5py: {number: (a, b)}."""
    with h5py.File(path, "w") as file:
        file["lora/vars/rank"] = np.int64(rank)
        for index, (a, b) in layers.items():
            file[f"lora/{index}/vars/lora_kernel_a"] = a
            file[f"lora/{index}/vars/lora_kernel_b"] = b
        if edit is not None:
            edit(file)
    return path


def pair(kernel=(6, 4), rank=2, seed=0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((*kernel[:-1], rank)).astype(dtype), rng.standard_normal((rank, kernel[-1])).astype(dtype)
