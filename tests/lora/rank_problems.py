"""A regression whose layers need updates of known ranks: two layers side by side on the same input, each with a hidden change."""

import numpy as np

from loratk import LoraConfig, LoraModel, ops
from loratk.lora.control import controlled_step
from loratk.nn import Linear, Module
from loratk.nn.optim import AdamW

D, K = 16, 12


class Pair(Module):
    def __init__(self, dtype=np.float32):
        self.left, self.right = Linear(D, K, rng=1, bias=False, dtype=dtype), Linear(D, K, rng=2, bias=False, dtype=dtype)

    def forward(self, x):
        return ops.concat([self.left(x), self.right(x)], axis=-1)


def change(rank, seed, size=1.0):
    """A matrix (d, k) of that rank with equal singular values."""
    rng = np.random.default_rng(seed)
    u, v = (np.linalg.qr(rng.standard_normal((n, rank)))[0] for n in (D, K))
    return size * u @ v.T


def problem(left, right, rows=256, dtype=np.float32):
    """Inputs, and the outputs of the pair with changes of these ranks."""
    x = np.random.default_rng(3).standard_normal((rows, D)).astype(dtype)
    base = Pair(np.float64)
    weights = [layer.weight.numpy() + (change(r, s) if r else 0) for layer, r, s in ((base.left, left, 4), (base.right, right, 5))]
    return x, np.concatenate([x @ weight for weight in weights], axis=1).astype(dtype)


def train(model, data, steps, *, lr=0.02, batch=64, controllers=None, optimizer=None):
    """Steps of AdamW on the mean square; returns the controllers and the loss of each step."""
    x, y = data
    optimizer = optimizer or AdamW(model.trainable(), lr=lr, weight_decay=0.0)
    controllers = model.controllers(steps) if controllers is None else controllers
    rng, losses = np.random.default_rng(0), []
    for _ in range(steps):
        rows = rng.choice(len(x), batch, replace=False)
        losses.append(controlled_step(controllers, optimizer, lambda rows=rows: ops.mse(model(x[rows]), y[rows])))
    return controllers, losses


def adapted(config, dtype=np.float32):
    return LoraModel.adapt(Pair(dtype), LoraConfig(**config))


def error(model, data):
    """The mean square of the model, in evaluation mode."""
    model.eval()
    value = ops.mse(model(data[0]), data[1]).item()
    model.train()
    return value


def ranks(model, adapter="default"):
    """The rank of each layer's adapter."""
    return {name: layer.adapter(adapter).block("").rank for name, layer in model.layers.items()}
