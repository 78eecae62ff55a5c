"""A checksum of many bytes at the speed of memory, to tell by accident changed bytes: not against who changes them on purpose.

Over each block of bytes two sums of NH (Black et al. 1999, "UMAC", section 3.2), the second with the key moved on: for the 32-bit words w
of a block and the key q, sum over i of ((w[2i] + q[2i]) mod 2^32) ((w[2i+1] + q[2i+1]) mod 2^32), mod 2^64. Two blocks that differ,
whatever they are, have equal sums under a random key with a probability of at most 2^-64.
"""

import hashlib

import numpy as np

BLOCK = 16384
"""Bytes that a pair of sums stands for."""
PAIRS = BLOCK // 8
SHIFT = 2
"""Pairs of words by which the key of the second sum is moved on."""
KEY = np.frombuffer(hashlib.shake_256(b"loratk checksum 1").digest(8 * (PAIRS + SHIFT)), "<u8").astype(np.uint64)
"""Pairs of 32-bit words."""
HALF, LOWER = np.uint64(32), np.uint64(0xFFFFFFFF)


def add_checksum(words, at, sums):
    """Add 64-bit words (n,), the first of which is number `at` of the whole, to the sums (blocks, 2) of all blocks, in place."""
    done = 0
    while done < len(words):
        block, first = divmod(at + done, PAIRS)
        run = words[done : done + PAIRS - first]
        low, high = run & LOWER, run >> HALF
        for lane in range(2):
            key = KEY[first + SHIFT * lane : first + SHIFT * lane + len(run)]
            sums[block, lane : lane + 1] += (((low + (key & LOWER)) & LOWER) * ((high + (key >> HALF)) & LOWER)).sum(dtype=np.uint64)
        done += len(run)
