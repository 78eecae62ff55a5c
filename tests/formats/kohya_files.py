"""Files of kohya and LyCORIS for the tests, and the updates that loratk's records make of them."""

from pathlib import Path

import numpy as np

from loratk.exchange import AdapterState, load_adapter
from loratk.exchange.factors import dense_update
from loratk.io import open_safetensors, write_safetensors

GOLDEN = Path(__file__).parent.parent / "data/kohya"
M = "lora_unet_m"


def normal(*shape, seed=0, dtype=np.float64):
    return np.random.default_rng(seed + 7 * len(shape) + sum(shape)).standard_normal(shape).astype(dtype)


def write(path, tensors, metadata=None, bfloat16=(), name=M):
    arrays = {f"{name}.{key}": np.asarray(array) for key, array in tensors.items()}
    write_safetensors(path, arrays, metadata or {}, {f"{name}.{key}" for key in bfloat16})
    return path


def read(tmp_path, tensors, *, metadata=None, bfloat16=(), **options):
    """The one state that the tensors of a module are read as, and the notes."""
    base = options.pop("base", None)
    path = write(tmp_path / "x.safetensors", tensors, metadata, bfloat16)
    reading = load_adapter(path, options=options, base=base)
    return reading.states[0], reading.notes


def torch_order(state, module=M):
    """The update of a LoRA module as torch lays its weight out, (k, channels, *window) or (k, d), by the record alone."""
    record, held = state.modules[module], state.parameters()[module]
    matrix = dense_update(record, held)
    window = record.get("kernel", [])
    return np.moveaxis(matrix.reshape(*window, -1, matrix.shape[1]), (-1, -2), (0, 1))


def close(got, want, tolerance=1e-12):
    assert got.shape == want.shape
    assert np.abs(got - want).max() <= tolerance * max(np.abs(want).max(), 1)


def lora(k=5, c=4, r=2, window=(), dtype=np.float64):
    ones = (1,) * len(window)
    return {"lora_down.weight": normal(r, c, *window, dtype=dtype), "lora_up.weight": normal(k, r, *ones, seed=1, dtype=dtype)}


def lokr(first, second, window=()):
    """The tensors of a LoKr module, and its w1 and w2."""
    r, size = 2, int(np.prod(window))
    w1 = {"full": {"lokr_w1": normal(3, 2)}, "low": {"lokr_w1_a": normal(3, r), "lokr_w1_b": normal(r, 2)}}[first]
    w2 = {
        "full": {"lokr_w2": normal(4, 5, *window)},
        "low": {"lokr_w2_a": normal(4, r), "lokr_w2_b": normal(r, 5 * size)},
        "tucker": {"lokr_w2_a": normal(r, 4), "lokr_w2_b": normal(r, 5), "lokr_t2": normal(r, r, *window)},
    }[second]
    one = w1.get("lokr_w1", w1.get("lokr_w1_a", 0) @ w1["lokr_w1_b"] if first == "low" else 0)
    two = (
        w2["lokr_w2"]
        if second == "full"
        else (w2["lokr_w2_a"] @ w2["lokr_w2_b"]).reshape(4, 5, *window)
        if second == "low"
        else np.einsum("ij...,ip,jq->pq...", w2["lokr_t2"], w2["lokr_w2_a"], w2["lokr_w2_b"])
    )
    return w1 | w2 | {"alpha": np.array(3.0)}, one, two


def golden(tmp_path, name):
    """A file of LyCORIS without what it wants, its expected update, base and merged weight."""
    with open_safetensors(GOLDEN / f"{name}.safetensors") as reader:
        arrays = {key: reader.array(key) for key in reader.names()}
    want = {key.removeprefix("want."): arrays.pop(key) for key in list(arrays) if key.startswith("want.")}
    write_safetensors(tmp_path / "x.safetensors", arrays, {})
    write_safetensors(tmp_path / "base.safetensors", {"m.weight": want["base"]}, {})
    return want


def plain(*modules, **changes):
    """A state of LoRA modules."""
    record = {"method": "lora", "layer_type": "linear", "shape": [4, 5], "rank": 2, "alpha": 2.0, "scaling": 1.0} | changes
    tensors = {f"{module}.{key}": array for module in modules for key, array in {"lora_A": normal(4, 2), "lora_B": normal(2, 5)}.items()}
    return AdapterState("a", {}, tensors, {module: dict(record) for module in modules})
