"""What methods are tried on: a matrix that has to change by a known one, and handwritten digits that lie on their side."""

from functools import cache

import numpy as np

from loratk import LoraConfig, LoraModel, Trainer, ops
from loratk.demo.tasks import make_tasks
from loratk.lora.control import controlled_step
from loratk.nn import MLP, Adam, AdamW, CrossEntropyLoss, Linear, cosine

SIZES, BATCH = (64, 256, 128, 10), 64

# A known answer: y = x (W + change), with inputs that weigh all directions alike, so that the loss is the squared distance of two matrices


def whitened(d, seed=0):
    """Rows (n, d) with x^T x = I."""
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((2 * d, d)))[0]


def weight(d, k, seed=1):
    """A matrix (d, k) whose columns are about 1 long."""
    return np.random.default_rng(seed).standard_normal((d, k)) / d**0.5


def with_values(d, k, values, seed=2):
    """A matrix (d, k) with these singular values."""
    rng = np.random.default_rng(seed)
    u, v = (np.linalg.qr(rng.standard_normal((size, len(values))))[0] for size in (d, k))
    return (u * np.asarray(values)) @ v.T


def tail(change, rank):
    """||change - its best approximation of that rank||^2 (Eckart & Young 1936): what no update of that rank can learn."""
    return float(np.sum(np.linalg.svd(change, compute_uv=False)[rank:] ** 2))


def one_layer(w, bias=None, **config):
    """A linear layer with that weight (d, k) and an adapter."""
    return LoraModel.adapt(Linear.from_arrays(w, bias), LoraConfig(**{"targets": "*", **config}))


def part(model, layer="root"):
    """The adapter of one layer."""
    return model.layers[layer].adapter("default").block("")


def delta(model, layer="root"):
    """What the adapter adds to a layer's weight, (d, k), float64."""
    return part(model, layer).delta(model.layers[layer].base.weight.numpy()).astype(np.float64)


def squared_distance(y, target):
    return ops.sum_over(ops.square(y - target))


def learn(model, x, target, *, steps=400, lr=0.05, optimizer=None, until=0.0, after=None):
    """Adam with a cosine schedule, or another optimiser, on all rows: the squared distance before each step and at the end.

    It ends where the distance is at most `until`. `after(model)` is called after each step.
    """
    made = optimizer or Adam(model.trainable(), lr=lr, schedule=cosine(steps))
    controllers, losses = model.controllers(steps), []
    for _ in range(steps):
        losses.append(controlled_step(controllers, made, lambda: squared_distance(model(x), target)))
        if losses[-1] <= until:
            return losses
        if after is not None:
            after(model)
    return [*losses, squared_distance(model.eval()(x), target).item()]


# Real data


@cache
def digits(seed=0):
    """The arrays of a classifier that knows upright digits alone, and the tasks: upright, sideways."""
    upright, turned, _ = make_tasks(seed)
    net = MLP(SIZES, rng=seed)
    trainer = Trainer(net, AdamW(net.trainable(), lr=3e-3), CrossEntropyLoss(), seed=seed, progress=False)
    trainer.fit(upright.train, epochs=15, batch_size=BATCH)
    return net.state_dict(), upright, turned


def classifier(seed=0):
    """The classifier, new."""
    net = MLP(SIZES, rng=0)
    net.load_state_dict(digits(seed)[0])
    return net


def adapted(seed=0, **config):
    """The classifier with an adapter for sideways digits, whose init sees these where it asks for data."""
    x, y = digits(seed)[2].train
    settings = LoraConfig(**{"rank": 4, "alpha": 8.0, "seed": seed, **config})
    seen = {"data": [x]}
    needs = {"eva": seen, "corda": seen, "lora_ga": {"data": [(x, y)], "loss": CrossEntropyLoss()}}
    return LoraModel.adapt(classifier(seed), settings, **needs.get(settings.layer("0").init_name, {}))


def teach(model, *, epochs=5, lr=1e-2, seed=0, optimizer=None):
    """AdamW with a cosine schedule, or another optimiser, on sideways digits, 22 steps an epoch: the loss of each step."""
    made = optimizer or AdamW(model.trainable(), lr=lr, weight_decay=0.0, schedule=cosine(22 * epochs))
    trainer = Trainer(model, made, CrossEntropyLoss(), seed=seed, progress=False)
    history = trainer.fit(digits(seed)[2].train, epochs=epochs, batch_size=BATCH)
    model.eval()
    return [float(record["loss"]) for record in history.steps]


def steps_to(loss, losses, over=10):
    """How many steps until the mean loss over so many steps is below that; all steps and one if it never is."""
    below = np.flatnonzero(np.convolve(losses, np.ones(over) / over, "valid") < loss)
    return int(below[0]) + over if len(below) else len(losses) + 1


def accuracy(model, task):
    """The share of a task's held-out images that are read right."""
    x, y = task.held_out
    return float(np.mean(model.eval()(x).numpy().argmax(axis=-1) == y))
