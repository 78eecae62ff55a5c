"""The task: digits on their side, for a classifier that was trained on upright ones."""

from dataclasses import dataclass
from functools import cache

import numpy as np

from loratk import Trainer
from loratk.demo.tasks import HELD_OUT, make_tasks
from loratk.nn import MLP, AdamW, CrossEntropyLoss

Pair = tuple[np.ndarray, np.ndarray]
SIZES = (64, 512, 256, 10)
BATCH = 64


@dataclass(frozen=True)
class Shift:
    """A classifier's weights, and the images (n, 64) and labels (n,) of the changed task: to train on, to choose the rate by, to report."""

    weights: dict[str, np.ndarray]
    train: Pair
    chosen_by: Pair
    reported: Pair

    def base(self) -> MLP:
        """The classifier, new."""
        net = MLP(SIZES, rng=0)
        net.load_state_dict(self.weights)
        return net


@cache
def shift(seed: int) -> Shift:
    """The task of a seed, which decides which images are held out and what the base starts from; the base is trained for 20 epochs."""
    assert 0 < HELD_OUT < 1
    own, sideways, _ = make_tasks(seed)
    net = MLP(SIZES, rng=seed)
    Trainer(net, AdamW(net.trainable(), lr=3e-3), CrossEntropyLoss(), seed=seed, progress=False).fit(own.train, epochs=20, batch_size=BATCH)
    (x, y), half = sideways.held_out, len(sideways.held_out[0]) // 2
    return Shift(net.state_dict(), sideways.train, (x[:half], y[:half]), (x[half:], y[half:]))
