"""An initialisation: entries of one size and random sign."""

import numpy as np

from loratk.lora import Init, Start, Started


class Signs(Init):
    """A of +-1/sqrt(d) with random signs, B = 0: projections by random signs keep lengths (Achlioptas 2003), and no row of A is short."""

    name = "signs"

    def start(self, start: Start) -> Started:
        """lora_A (d, r) random, lora_B (r, k) zero."""
        (d, k), dtype = start.weight.shape, start.weight.dtype
        a = start.rng.choice([-1.0, 1.0], (d, start.rank)) / np.sqrt(d)
        return Started(a.astype(dtype), np.zeros((start.rank, k), dtype))
