"""Chunks of an HDF5 dataset, unpacked by Python: the filters of HDF5 2.0 read past the end of chunks that are too short."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from typing import Any

import h5py
import numpy as np

from .hdf5_headers import piece
from .seal import SealedFile

FILTERS = {h5py.h5z.FILTER_DEFLATE: "gzip", h5py.h5z.FILTER_SHUFFLE: "shuffle", h5py.h5z.FILTER_FLETCHER32: "fletcher32"}
_SUM = 4  # bytes of a fletcher32 checksum


def read_chunks(file: SealedFile, dataset: h5py.Dataset) -> np.ndarray:
    """All of a chunked dataset. Raises ValueError where a chunk is damaged or was never written: fill values can crash HDF5 too."""
    layout = dataset.id.get_create_plist()
    filters = [layout.get_filter(index)[::2][:2] for index in range(layout.get_nfilters())]
    found = list(_places(dataset))
    axes = list(zip(dataset.shape, dataset.chunks, strict=True))
    whole = math.prod(-(-length // part) for length, part in axes)
    starts = {start for start, *_ in found if all(at < length and not at % part for at, (length, part) in zip(start, axes, strict=True))}
    if len(starts) != whole:
        raise ValueError(f"it has {len(starts)} of its {whole} chunks: its writer did not finish")
    array = np.empty(dataset.shape, dataset.dtype)
    for start, mask, place, size in found:
        data = piece(file, place, size)
        if len(data) < size:
            raise ValueError(f"the chunk at {start} lies outside of the file")
        used = [packing for index, packing in enumerate(filters) if not mask >> index & 1]
        block = np.frombuffer(_unpacked(data, used, math.prod(dataset.chunks) * array.itemsize, start), array.dtype).reshape(dataset.chunks)
        inside = tuple(slice(at, at + length) for at, length in zip(start, dataset.chunks, strict=True))
        part = array[inside]
        part[...] = block[tuple(slice(length) for length in part.shape)]
    return array


def _places(dataset: h5py.Dataset) -> Iterator[tuple[tuple[int, ...], int, int, int]]:
    """Of each chunk where it begins in the dataset, which filters it has not, where it lies in the file, and its bytes there."""
    found: list[Any] = []
    if hasattr(dataset.id, "chunk_iter"):
        dataset.id.chunk_iter(found.append)
    else:  # HDF5 before 1.12.3
        found += map(dataset.id.get_chunk_info, range(dataset.id.get_num_chunks()))
    return ((info.chunk_offset, info.filter_mask, info.byte_offset, info.size) for info in found)


def _unpacked(data: bytes, filters: list[tuple[int, tuple[int, ...]]], size: int, start: tuple[int, ...]) -> bytes:
    """The bytes of a chunk, of which there must be `size`."""
    for code, options in reversed(filters):
        if code == h5py.h5z.FILTER_DEFLATE:
            data = zlib.decompressobj().decompress(data, size + _SUM * len(filters) + 1)
        elif code == h5py.h5z.FILTER_SHUFFLE:
            data = _unshuffled(data, options[0] if options else 1)
        elif len(data) < _SUM or not _fits(data[:-_SUM], int.from_bytes(data[-_SUM:], "little")):
            raise ValueError(f"the chunk at {start} does not match its checksum")
        else:
            data = data[:-_SUM]
    if len(data) != size:
        raise ValueError(f"the chunk at {start} has {len(data)} bytes, and should have {size}")
    return data


def _unshuffled(data: bytes, width: int) -> bytes:
    """Bytes that lie first of all items, second of all items, ... as items again; what is left over stays at the end."""
    count = len(data) // width if width else 0
    whole = np.frombuffer(data[: count * width], np.uint8).reshape(width, count)
    return whole.T.tobytes() + data[count * width :]


def _fits(data: bytes, want: int) -> bool:
    """Whether data have Fletcher's checksum over big-endian words of 16 bits, both halves modulo 65535."""
    words = np.frombuffer(data + b"\0" * (len(data) % 2), ">u2").astype(np.uint64)
    weights = np.arange(len(words), 0, -1, dtype=np.uint64) % np.uint64(65535)
    low, high = int(words.sum()), int((words * weights).sum())
    return (low - (want & 0xFFFF)) % 65535 == 0 and (high - (want >> 16)) % 65535 == 0
