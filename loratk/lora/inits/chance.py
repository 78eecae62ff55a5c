"""A drawn at random, B zero: the update is 0 at first."""

import math

import numpy as np

from .base import Init, Start, Started


class Kaiming(Init):
    """A uniform in +-1/sqrt(d), B = 0: what LoRA layers start from where nothing else is said. He et al. 2015, with a = sqrt 5."""

    name = "kaiming"

    def start(self, start: Start) -> Started:
        """lora_A (d, r) random, lora_B (r, k) zero."""
        d, _ = start.weight.shape
        return _with_zeros(start, start.rng.uniform(-(d**-0.5), d**-0.5, (d, start.rank)))


class Gaussian(Init):
    """A from N(0, 1/r), B = 0. Hu et al. 2021, section 4.1, with the variance that PEFT gives it."""

    name = "gaussian"

    def start(self, start: Start) -> Started:
        """lora_A (d, r) random, lora_B (r, k) zero."""
        return _with_zeros(start, start.rng.standard_normal((start.weight.shape[0], start.rank)) / math.sqrt(start.rank))


def _with_zeros(start: Start, a: np.ndarray) -> Started:
    dtype = start.weight.dtype
    return Started(a.astype(dtype), np.zeros((start.rank, start.weight.shape[1]), dtype))
