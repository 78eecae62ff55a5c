"""The order of rows of q and k: llama.cpp turns neighbouring numbers of a head, transformers numbers half a head apart (RoPE).

Its converter reorders the rows of these weights for some architectures, and so must the columns of lora_B be.
"""

from __future__ import annotations

import numpy as np

PERMUTED = ("arcee", "granite", "granitemoe", "llama", "minicpm", "mistral3", "olmo", "smollm3")
"""Architectures whose q and k llama.cpp's converter reorders; the others keep the order of transformers."""
HEADS = {"attn_q": "n_head", "attn_k": "n_head_kv"}
"""The tensors it reorders, and the option with the number of their heads."""
HEAD_KEYS = {"n_head": "attention.head_count", "n_head_kv": "attention.head_count_kv"}
"""Where GGUF keeps these numbers, after the architecture's name."""


def interleave(lora_b: np.ndarray, heads: int) -> np.ndarray:
    """From the order of transformers to that of llama.cpp: (r, k) -> (r, k); k must be a multiple of 2 heads."""
    r, k = lora_b.shape
    return np.ascontiguousarray(lora_b.reshape(r, heads, 2, k // heads // 2).swapaxes(2, 3)).reshape(r, k)


def deinterleave(lora_b: np.ndarray, heads: int) -> np.ndarray:
    """The inverse of `interleave`: (r, k) -> (r, k)."""
    r, k = lora_b.shape
    return np.ascontiguousarray(lora_b.reshape(r, heads, k // heads // 2, 2).swapaxes(2, 3)).reshape(r, k)
