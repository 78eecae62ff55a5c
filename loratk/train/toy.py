"""Small made-up data sets, for trying things out."""

import numpy as np

from .data import check_count

Rng = np.random.Generator | int


def spiral(rows: int = 300, *, classes: int = 3, noise: float = 0.2, rng: Rng) -> tuple[np.ndarray, np.ndarray]:
    """Points on the arms of a spiral, one arm a class: x (rows, 2) float32, labels (rows,) int64.

    The arms wind 4 radians around each other, with `noise` radians of scatter; no straight line tells them apart.
    """
    rng = np.random.default_rng(rng)
    label = np.arange(check_count("rows", rows)) % check_count("classes", classes)
    radius = rng.random(rows)
    angle = 4 * radius + 2 * np.pi * label / classes + noise * rng.standard_normal(rows)
    order = rng.permutation(rows)
    points = np.stack([radius * np.sin(angle), radius * np.cos(angle)], axis=1)
    return points[order].astype(np.float32), label[order].astype(np.int64)


def sine(rows: int = 300, *, noise: float = 0.05, rng: Rng) -> tuple[np.ndarray, np.ndarray]:
    """sin(2 pi x) with normal noise at random x in [0, 1): x (rows, 1), y (rows, 1), both float32."""
    rng = np.random.default_rng(rng)
    x = rng.random((check_count("rows", rows), 1))
    y = np.sin(2 * np.pi * x) + noise * rng.standard_normal(x.shape)
    return x.astype(np.float32), y.astype(np.float32)
