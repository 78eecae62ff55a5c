"""What mlx-lm's loader does with an adapter folder, written anew in NumPy: which layers it makes, what it refuses, what they add."""

import json
from dataclasses import dataclass, field

import numpy as np

from loratk.io import open_safetensors

LAYERS = "model.layers"


@dataclass
class Model:
    """A base: kind and weight (output first, as mlx keeps it) of each layer by its path."""

    layers: dict[str, tuple[str, np.ndarray]]
    made: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    scale: float = 0.0

    @property
    def blocks(self):
        """The layers of each block by their path within it, block by block."""
        found = {}
        for path, layer in self.layers.items():
            if path.startswith(f"{LAYERS}."):
                number, _, inner = path[len(LAYERS) + 1 :].partition(".")
                found.setdefault(int(number), {})[inner] = layer
        return [found[number] for number in sorted(found)]

    def load(self, folder):
        """linear_to_lora_layers and load_adapters of mlx-lm 0.32, for fine_tune_type lora and dora."""
        config = json.loads((folder / "adapter_config.json").read_text())
        parameters, kind = config["lora_parameters"], config.get("fine_tune_type", "lora")
        rank, self.scale, _ = parameters["rank"], parameters["scale"], parameters["dropout"]
        blocks = self.blocks
        keys = parameters.get("keys")
        if keys is None:
            keys = {inner for block in blocks for inner in block}
        first = len(blocks) - len(blocks[-max(config["num_layers"], 0) :])
        chosen = [f"{LAYERS}.{first + n}.{inner}" for n, block in enumerate(blocks[first:]) for inner in block if inner in keys]
        for path in [*chosen, *(path for path in self.layers if path in keys)]:
            self.made[path] = _fresh(*self.layers[path], rank, dora=kind == "dora")
        with open_safetensors(folder / "adapters.safetensors") as reader:
            for name in reader.names():
                path, _, leaf = name.rpartition(".")
                if leaf not in self.made.get(path, {}):
                    raise ValueError(f"{name}: not an adapter parameter in the model")
                if reader.shape(name) != self.made[path][leaf].shape:
                    raise ValueError(f"{name}: shape {reader.shape(name)} does not match {self.made[path][leaf].shape}")
                self.made[path][leaf] = reader.array(name)
        return self

    def update(self, path):
        """What is added to a weight as it acts, (d, k), or (experts, d, k)."""
        held = {leaf: array.astype(np.float64) for leaf, array in self.made[path].items()}
        weight = self.layers[path][1].astype(np.float64)
        if weight.ndim == 3:
            return self.scale * (held["lora_b"] @ held["lora_a"]).swapaxes(1, 2)
        update = self.scale * held["lora_a"] @ held["lora_b"]
        if "m" not in held:
            return update
        adapted = weight + update.T
        return (held["m"][:, None] / np.linalg.norm(adapted, axis=1)[:, None] * adapted - weight).T


def _fresh(kind, weight, rank, *, dora):
    """A new layer: lora_b is zero, and DoRA's magnitude the norm of each row."""
    if kind == "switch":
        assert not dora, "SwitchLinear doesn't support DoRA yet."
        experts, k, d = weight.shape
        return {"lora_a": np.ones((experts, rank, d)), "lora_b": np.zeros((experts, k, rank))}
    k, d = weight.shape if kind == "linear" else weight.shape[::-1]
    made = {"lora_a": np.ones((d, rank)), "lora_b": np.zeros((rank, k))}
    return made | ({"m": np.linalg.norm(weight, axis=1)} if dora else {})


def tiny(blocks=4):
    """A model of that many blocks, its even ones with another layer."""
    rng = np.random.default_rng(8)
    layers = {"model.embed_tokens": ("embedding", (10, 8)), "lm_head": ("linear", (10, 8))}
    for n in range(blocks):
        layers |= {f"{LAYERS}.{n}.self_attn.q_proj": ("linear", (12, 8)), f"{LAYERS}.{n}.mlp.up_proj": ("linear", (6, 8))}
        layers |= {f"{LAYERS}.{n}.mlp.switch_mlp.up_proj": ("switch", (3, 6, 8))}
        if n % 2 == 0:
            layers[f"{LAYERS}.{n}.mixer.in_proj"] = ("linear", (5, 8))
    return Model({path: (kind, rng.standard_normal(shape)) for path, (kind, shape) in layers.items()})
