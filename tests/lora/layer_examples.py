"""A small module and input for every registered layer type; a type without one fails its test."""

import numpy as np

from loratk.nn import Conv2d, Embedding, Linear, QKVProjection


def floats(*shape):
    return lambda dtype: np.random.default_rng(5).standard_normal(shape).astype(dtype)


LAYERS = {
    Linear: (lambda dtype: Linear(5, 4, rng=1, dtype=dtype), floats(2, 3, 5)),
    Embedding: (lambda dtype: Embedding(7, 4, rng=1, dtype=dtype), lambda dtype: np.array([[1, 6, 0], [3, 1, 1]])),
    Conv2d: (lambda dtype: Conv2d(2, 3, (3, 2), stride=(2, 1), padding=1, dilation=(1, 2), rng=1, dtype=dtype), floats(1, 4, 5, 2)),
    QKVProjection: (lambda dtype: QKVProjection(4, heads=2, kv_heads=1, rng=1, dtype=dtype), floats(2, 3, 4)),
}
