"""The checksum, compiled: integer sums, so in whatever order they are the reference's."""

import numpy as np

from .. import runtime
from ..reference.checksum import HALF, KEY, LOWER, PAIRS, SHIFT

_LOW, _HIGH = KEY & LOWER, KEY >> HALF


@runtime.jit
def _add(words, at, sums, key_low, key_high, pairs, shift):
    done = 0
    while done < words.size:
        block, first = (at + done) // pairs, (at + done) % pairs
        count = min(words.size - done, pairs - first)
        run = words[done : done + count]
        low0, high0 = key_low[first : first + count], key_high[first : first + count]
        low1, high1 = key_low[first + shift : first + shift + count], key_high[first + shift : first + shift + count]
        one = two = np.uint64(0)
        for i in range(count):
            low, high = run[i] & LOWER, run[i] >> HALF
            one += ((low + low0[i]) & LOWER) * ((high + high0[i]) & LOWER)
            two += ((low + low1[i]) & LOWER) * ((high + high1[i]) & LOWER)
        sums[block, 0] += one
        sums[block, 1] += two
        done += count


def add_checksum(words, at, sums):
    """Add 64-bit words (n,), the first of which is number `at` of the whole, to the sums (blocks, 2) of all blocks, in place."""
    with np.errstate(over="ignore"):  # as plain Python, sums run over on purpose
        _add(words, at, sums, _LOW, _HIGH, PAIRS, SHIFT)
