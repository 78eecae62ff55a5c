"""The tasks of the demonstration: handwritten digits as they are, and seen in two ways that a classifier does not know."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from .. import data
from ..train import split

View = Callable[[np.ndarray], np.ndarray]
Pair = tuple[np.ndarray, np.ndarray]

OWN: tuple[str, View] = ("upright", lambda images: images)
CHANGED: Mapping[str, View] = {
    "sideways": lambda images: np.rot90(images, axes=(1, 2)),  # the sheet lay in the scanner the wrong way
    "mirrored": lambda images: images[:, :, ::-1],  # read from behind, as on glass
}
HELD_OUT = 0.25


@dataclass(frozen=True)
class Task:
    """Images (n, 64) float32 in [0, 1] and labels (n,): those to train on, and those held out."""

    name: str
    train: Pair
    held_out: Pair


def make_tasks(seed: int) -> list[Task]:
    """The base's own task, then the changed ones. An image is held out from all tasks or from none."""
    images, labels = data.digits()
    rows = split(np.arange(len(images)), labels.astype(np.int64), (1 - HELD_OUT, HELD_OUT), seed=seed)
    tasks = []
    for name, view in dict([OWN], **CHANGED).items():
        x = np.ascontiguousarray(view(images), np.float32).reshape(len(images), -1) / 16
        train, held_out = ((x[index], y) for index, y in rows)
        tasks.append(Task(name, train, held_out))
    return tasks
