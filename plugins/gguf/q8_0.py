"""Q8_0, ggml's 8-bit blocks: 32 numbers in a row as a float16 step and 32 signed bytes, x = step * byte."""

import numpy as np

BLOCK = 32


def dequantize(raw: np.ndarray) -> np.ndarray:
    """The numbers of blocks, exactly as ggml has them: (34 n,) uint8 -> (32 n,) float32."""
    blocks = raw.reshape(-1, 2 + BLOCK)
    step = np.ascontiguousarray(blocks[:, :2]).view("<f2").astype(np.float32)
    return (blocks[:, 2:].view(np.int8).astype(np.float32) * step).reshape(-1)


def quantize(array: np.ndarray) -> np.ndarray:
    """Blocks of numbers, rows a multiple of 32, in the bits that ggml makes: any shape -> (bytes,) uint8.

    The step is the largest magnitude / 127; a byte is x / step, rounded to nearest, halves away from 0 (ggml, quantize_row_q8_0_ref).
    """
    x = np.ascontiguousarray(array, np.float32).reshape(-1, BLOCK)
    step = np.abs(x).max(axis=1, keepdims=True) / np.float32(127)
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        inverse = np.where(step == 0, np.float32(0), np.float32(1) / step)
        scaled = x * inverse
        small = np.abs(scaled)
        whole = np.floor(small)
        codes = np.sign(scaled) * (whole + np.floor(2 * (small - whole)))
        halves = step.astype("<f2").view(np.uint8)
        return np.concatenate([halves, codes.astype(np.int8).view(np.uint8)], axis=1).reshape(-1)
