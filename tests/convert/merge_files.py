"""Small checkpoints in every store and dtype, adapters for them, and the bits of what is in a file."""

import json

import numpy as np

from loratk.convert.files import Source
from loratk.exchange import AdapterState, Checkpoint
from loratk.exchange.transform import round_bfloat16
from loratk.io import find_store, write_safetensors
from loratk.plugins import default_registry

STORES = default_registry().stores
SHAPES = {"embed.weight": (9, 4), "a.weight": (5, 4), "a.bias": (5,), "b.weight": (6, 5), "b.bias": (6,), "norm.weight": (6,)}
"""Output first, as torch has it."""
ADAPTED = {"a": (4, 5), "b": (5, 6)}
RECORD = {"method": "lora", "rank": 2, "alpha": 4.0, "scaling": 2.0}
KINDS = ["bfloat16", "float16", "float32", "float64"]


def arrays(dtype="float32", seed=0):
    """The arrays of a base; bfloat16 as float32. With a whole-number array that nothing changes."""
    rng = np.random.default_rng(seed)
    made = {name: rng.standard_normal(shape) for name, shape in SHAPES.items()}
    cast = round_bfloat16 if dtype == "bfloat16" else lambda x: x.astype(dtype)
    return {name: cast(array) for name, array in made.items()} | {"steps": np.arange(3)}


def adapter(name="mine", seed=1, size=1.0, modules=ADAPTED, **more):
    """Plain LoRA for some layers."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for module, (d, k) in modules.items():
        tensors |= {f"{module}.lora_A": rng.standard_normal((d, 2)), f"{module}.lora_B": size * rng.standard_normal((2, k))}
    tensors = {key: array.astype(np.float32) for key, array in tensors.items()}
    return AdapterState(name, {}, tensors, {module: RECORD | {"shape": [d, k]} | more for module, (d, k) in modules.items()})


def update(state, module, scaling=2.0):
    """What an adapter of `adapter` adds to a weight of torch, in float64."""
    a, b = (state.tensors[f"{module}.{key}"].astype(np.float64) for key in ("lora_A", "lora_B"))
    return scaling * (a @ b).T


def base_file(path, dtype="float32", **options):
    """A base in one file, whose store is that of the suffix, output first in any; "note" is among its strings."""
    halves = list(SHAPES) if dtype == "bfloat16" else []
    if path.suffix == ".safetensors":
        write_safetensors(path, arrays(dtype, **options), {"format": "pt", "note": "kept"}, halves)
    else:
        find_store(path, STORES, for_writing=True).write(path, arrays(dtype, **options), {"note": "kept"})
    return path


def base_folder(path, dtype="float32", **options):
    """A base in three shards with an index, and files beside them."""
    path.mkdir()
    whole, where = arrays(dtype, **options), {}
    for place, names in enumerate((["embed.weight", "a.weight"], ["a.bias", "b.weight", "steps"], ["b.bias", "norm.weight"])):
        file = f"model-{place}.safetensors"
        part = {name: whole[name] for name in names}
        write_safetensors(path / file, part, {"format": "pt", "shard": str(place)}, set(part) - {"steps"} if dtype == "bfloat16" else ())
        where |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": 1, "made_by": "test"}, "weight_map": where}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    (path / "config.json").write_text("{}")
    (path / "pytorch_model.bin").write_bytes(b"weights of another kind")
    return path


def bits(path):
    """The dtype, the shape and the bytes of every array of a checkpoint."""
    with Checkpoint(path, STORES) as opened:
        source = Source(opened)
        return {name: (*source.infos[name], source.stored(name).tobytes()) for name in source.infos}


def numbers(path):
    """Every array of a checkpoint; bfloat16 as float32."""
    with Checkpoint(path, STORES) as opened:
        held = opened.arrays()
        return {name: np.array(held[name]) for name in held}


def entries(folder):
    """All files and folders in and below a folder, by their relative names."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
