"""Checksums of arrays as they are stored, and of whole checkpoints: the same whatever file, shard or store they lie in.

An array's is the SHA-256 of its dtype, its shape and fast sums over blocks of its bytes; a checkpoint's is the SHA-256 of the names and
checksums of its arrays. They tell what was changed by accident or by another program, not what was forged.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..exchange import AdapterState
from ..kernels.reference.checksum import BLOCK, add_checksum

COMPILED = 1 << 19  # bytes of an array from which it pays to have the compiled kernel, which gives the same


class ArrayChecksum:
    """The checksum of an array of `size` bytes, given piece by piece in any order, from any thread."""

    def __init__(self, dtype: str, shape: Sequence[int], size: int) -> None:
        """`dtype` as safetensors calls it."""
        self._head = f"{dtype}|{list(shape)}|".encode()
        self._sums = np.zeros((-(-size // BLOCK), 2), np.uint64)
        self._kernel = _kernel(size)
        self._lock = threading.Lock()

    def add(self, at: int, data: Any) -> None:
        """A piece that begins at a byte, a multiple of 8; its length is one too, unless it is the last."""
        raw = np.frombuffer(data, np.uint8)
        if rest := len(raw) % 8:
            self._add((at + len(raw) - rest) // 8, np.frombuffer(raw[-rest:].tobytes() + bytes(8 - rest), "<u8"))
            raw = raw[:-rest]
        if len(raw):
            self._add(at // 8, np.require(raw.view("<u8"), np.uint64, "A"))

    def _add(self, at: int, words: np.ndarray) -> None:
        per_block = BLOCK // 8
        first, last = at // per_block, -(-(at + len(words)) // per_block)
        mine = np.zeros((last - first, 2), np.uint64)
        self._kernel(words, at - first * per_block, mine)
        with self._lock:
            self._sums[first:last] += mine

    def hex(self) -> str:
        """The checksum, 64 hexadecimal digits."""
        return hashlib.sha256(self._head + self._sums.astype("<u8").tobytes()).hexdigest()


def _kernel(size: int) -> Any:
    if size < COMPILED:
        return add_checksum
    from ..kernels.cpu.checksum import add_checksum as compiled

    return compiled


def whole(checksums: Mapping[str, str]) -> str:
    """The checksum of a checkpoint by those of its arrays."""
    digest = hashlib.sha256()
    for name in sorted(checksums):
        digest.update(f"{json.dumps(name)} {checksums[name]}\n".encode())
    return digest.hexdigest()


def adapter_sha256(state: AdapterState) -> str:
    """SHA-256 of what an adapter adds: modules, methods, scalings, shapes and numbers, whatever its name, file, format and dtype."""
    digest = hashlib.sha256()
    for module, held in sorted(state.parameters().items()):
        record = state.modules[module]
        facts = {key: record[key] for key in ("method", "scaling", "groups", "columns", "experts") if key in record}
        digest.update(f"{json.dumps([module, facts], sort_keys=True)}\n".encode())
        for key, array in sorted(held.items()):
            numbers = array.astype("<f8" if array.dtype.kind == "f" else array.dtype.newbyteorder("<"))
            digest.update(f"{key}|{list(array.shape)}|".encode())
            digest.update(np.ascontiguousarray(numbers).data)
    return digest.hexdigest()
