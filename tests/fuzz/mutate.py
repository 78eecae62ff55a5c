"""Inputs made from sound ones: bits flipped, parts cut, doubled and exchanged, numbers and lengths replaced by awkward ones."""

import struct

import numpy as np

NUMBERS = [0, 1, 2, 7, 8, 64, 127, 128, 255, 256, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**60, 2**63 - 1, 2**63, 2**64 - 1]
SNIPPETS = [
    b"\0", b"\0" * 16, b"\xff" * 8, b"../", b"/etc/passwd",
    b"NaN", b"Infinity", b"-1", b"1e999", b'"', b"{", b"[" * 2000, b"}", b",", b"\\ud800",
    b"\xc3\x28", b'"rank":0', b'"r":0', b"lora_A", b"lora_B", b"weight", b".alpha", b"__metadata__", b"__loratk", b"GGUF",
    b"PK\1\2", b"PK\3\4",
    b"PK\5\6", b"\x93NUMPY", b"TREE", b"SNOD", b"HEAP", b"GCOL", b"OHDR", b"OCHK", b"FRHP", b"FHDB", b"BTHD", b"BTLF", b"\x89HDF\r\n\x1a\n",
    b"\x80\x02", b"cos\nsystem\n", b"cbuiltins\neval\n", b"(lp0\n", b"R.", b"\x8a\xff", b"\x00" * 300,
]  # fmt: skip


class Mutator:
    """Changes of bytes, drawn from one generator."""

    def __init__(self, random: np.random.Generator) -> None:
        self.random = random

    def chance(self, probability: float) -> bool:
        return bool(self.random.random() < probability)

    def below(self, count: int) -> int:
        return int(self.random.integers(count))

    def pick(self, choices):
        return choices[self.below(len(choices))]

    def number(self, near: int = 0) -> int:
        """An awkward number, or one that is hardly wrong."""
        return self.pick(NUMBERS) if self.chance(0.6) else max(near + self.pick([-8, -4, -1, 1, 4, 8]), 0)

    def change(self, data: bytes, other: bytes) -> bytes:
        """Some changes; `other` is what pieces are taken from."""
        for _ in range(1 + min(self.below(4), self.below(8))):
            data = self.pick(CHANGES)(self, data, other)
        return data


def flip(m: Mutator, data: bytes, other: bytes) -> bytes:
    if not data:
        return b"\1"
    at = m.below(len(data))
    return data[:at] + bytes([data[at] ^ (1 << m.below(8))]) + data[at + 1 :]


def put(m: Mutator, data: bytes, other: bytes) -> bytes:
    at = m.below(len(data) + 1)
    return data[:at] + bytes([m.below(256)]) + data[at + 1 :]


def cut(m: Mutator, data: bytes, other: bytes) -> bytes:
    return data[: m.below(len(data) + 1)]


def drop(m: Mutator, data: bytes, other: bytes) -> bytes:
    at = m.below(len(data) + 1)
    return data[:at] + data[at + 1 + m.below(m.pick([2, 16, 200])) :]


def double(m: Mutator, data: bytes, other: bytes) -> bytes:
    at = m.below(len(data) + 1)
    return data[:at] + data[at : at + 1 + m.below(64)] + data[at:]


def splice(m: Mutator, data: bytes, other: bytes) -> bytes:
    return data[: m.below(len(data) + 1)] + other[m.below(len(other) + 1) :]


def graft(m: Mutator, data: bytes, other: bytes) -> bytes:
    at, start, size = m.below(len(data) + 1), m.below(len(other) + 1), 1 + m.below(64)
    return data[:at] + other[start : start + size] + data[at + size :]


def snippet(m: Mutator, data: bytes, other: bytes) -> bytes:
    at, new = m.below(len(data) + 1), m.pick(SNIPPETS)
    return data[:at] + new + data[at + (len(new) if m.chance(0.6) else 0) :]


def digits(m: Mutator, data: bytes, other: bytes) -> bytes:
    """Another number in place of one that is written out."""
    at = m.below(len(data) + 1)
    while at < len(data) and not 48 <= data[at] < 58:
        at += 1
    stop = at
    while stop < len(data) and 48 <= data[stop] < 58:
        stop += 1
    if at == stop:
        return data
    return data[:at] + str(m.number(int(data[at : min(stop, at + 18)]))).encode() + data[stop:]


def field(m: Mutator, data: bytes, other: bytes) -> bytes:
    """Another number in place of one of 1 to 8 bytes, a small one if there is: lengths, counts and offsets mostly are."""
    if len(data) < 8:
        return data
    form = m.pick(["<B", "<H", "<I", "<Q", ">I"])
    size = struct.calcsize(form)
    for _ in range(20):
        at = m.below(len(data) - size + 1)
        (value,) = struct.unpack_from(form, data, at)
        if 0 < value <= len(data):
            break
    return data[:at] + struct.pack(form, m.number(value) % (1 << 8 * size)) + data[at + size :]


CHANGES = [flip, flip, put, cut, drop, double, splice, graft, snippet, digits, field, field, field]
