"""GGUF files put together by hand, byte by byte."""

import struct

import numpy as np

TEXT, ARRAY = 8, 9


def text(value):
    raw = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(raw)) + raw


def string(key, value):
    return text(key) + struct.pack("<I", TEXT) + text(value)


def f32(key, value):
    return text(key) + struct.pack("<If", 6, value)


def u32(key, value):
    return text(key) + struct.pack("<II", 4, value)


FACTS = [string("general.architecture", "llama"), string("general.type", "adapter"), string("adapter.type", "lora"),
         f32("adapter.lora.alpha", 16.0)]  # fmt: skip


def info(name, shape, kind=0, offset=0):
    return text(name) + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}Q", *shape[::-1]) + struct.pack("<IQ", kind, offset)


def raw(fields=tuple(FACTS), tensors=(), data=b"", version=3, counts=None, alignment=32):
    """A file by hand: values, records of tensors, and the bytes of the data."""
    n_tensors, n_values = counts or (len(tensors), len(fields))
    head = b"GGUF" + struct.pack("<IQQ", version, n_tensors, n_values) + b"".join(fields) + b"".join(tensors)
    return head + bytes(-len(head) % alignment) + data


def pair(name="blk.0.attn_v.weight", d=3, k=2, r=1):
    """Records and data of a pair of float32 factors that begins the data."""
    a, b = np.arange(1, r * d + 1, dtype="<f4").tobytes(), np.arange(1, r * k + 1, dtype="<f4").tobytes()
    a += bytes(-len(a) % 32)
    return [info(f"{name}.lora_a", (r, d)), info(f"{name}.lora_b", (k, r), 0, len(a))], a + b + bytes(-len(b) % 32)
