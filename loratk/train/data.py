"""What a model is trained on: arrays cut into shuffled batches, or anyone's batches."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from itertools import islice
from typing import Any, Protocol, Union, runtime_checkable

import numpy as np

from ..errors import ConfigError, DtypeError, ShapeError, StateError

Batch = tuple[Any, Any]
Data = Union[tuple[Any, Any], Iterable[Batch], Callable[[int], Iterable[Batch]], "Source"]

DEFAULT_BATCH_SIZE = 32


@runtime_checkable
class Source(Protocol):
    """Batches (x, y), epoch after epoch. `length`: how many an epoch has, if known. `settings`: what decides which they are."""

    length: int | None
    settings: dict[str, Any]

    def batches(self, epoch: int, skip: int = 0) -> Iterator[Batch]:
        """The batches of an epoch (0, 1, ...) in their order, without the first `skip`."""


def as_source(data: Data, *, batch_size: int | None, shuffle: bool, seed: int, name: str) -> Source:
    """Arrays `(x, y)`, an iterable of batches, a function from the epoch to one, or a Source, as a Source. `name` is for messages."""
    if isinstance(data, Source):
        return NamedSource(data, name)
    if isinstance(data, tuple):
        return ArraySource(data, batch_size=DEFAULT_BATCH_SIZE if batch_size is None else batch_size, shuffle=shuffle, seed=seed, name=name)
    if not callable(data) and not isinstance(data, Iterable):
        raise DtypeError(f"{name} must be arrays (x, y), an iterable of batches (x, y) or a function epoch -> batches, found {data!r}.")
    return BatchSource(data, name=name)


class ArraySource:
    """Two arrays with the same number of rows, drawn in batches; the last of an epoch may be smaller.

    The order of an epoch follows from the seed and the epoch alone, so any place in a training run can be returned to.
    """

    def __init__(self, data: tuple[Any, Any], *, batch_size: int, shuffle: bool, seed: int, name: str) -> None:
        self.x, self.y = check_arrays(data, name)
        self.batch_size, self.shuffle, self.seed = check_count("batch_size", batch_size), shuffle, seed
        self.length: int | None = math.ceil(len(self.x) / batch_size)
        shapes = {key: f"{array.dtype}{list(array.shape)}" for key, array in (("x", self.x), ("y", self.y))}
        self.settings = {f"{name} batch_size": batch_size, f"{name} shuffle": shuffle} | {f"{name} {k}": v for k, v in shapes.items()}

    def batches(self, epoch: int, skip: int = 0) -> Iterator[Batch]:
        """The batches of an epoch in their order, without the first `skip`."""
        rng = np.random.default_rng([self.seed, epoch]) if self.shuffle else None
        return _cut(self.x, self.y, self.batch_size, rng, skip)


class NamedSource:
    """A source that somebody else made, its settings under a name."""

    def __init__(self, source: Source, name: str) -> None:
        self.source, self.length = source, source.length
        self.settings = {f"{name} {key}": value for key, value in source.settings.items()}

    def batches(self, epoch: int, skip: int = 0) -> Iterator[Batch]:
        """The batches of an epoch in their order, without the first `skip`."""
        return self.source.batches(epoch, skip)


class BatchSource:
    """Batches that somebody else makes. Each epoch iterates afresh, or calls the function with the number of the epoch."""

    def __init__(self, data: Iterable[Batch] | Callable[[int], Iterable[Batch]], *, name: str) -> None:
        self.data, self.name = data, name
        self.once = isinstance(data, Iterator)
        self.length: int | None = len(data) if isinstance(data, Sized) else None
        self.settings: dict[str, Any] = {f"{name} batches": self.length}

    def batches(self, epoch: int, skip: int = 0) -> Iterator[Batch]:
        """The batches of an epoch in their order, without the first `skip`."""
        iterator = iter(self.data(epoch) if callable(self.data) else self.data)
        if sum(1 for _ in islice(iterator, skip)) < skip:
            raise StateError(f"{self.name}: {skip} batches of epoch {epoch + 1} were trained on before, but now it has fewer.")
        for number, batch in enumerate(iterator, skip + 1):
            if not isinstance(batch, (tuple, list)) or len(batch) != 2:
                found = f"a {type(batch).__name__}" + (f" of {len(batch)}" if isinstance(batch, (tuple, list)) else "")
                raise DtypeError(f"{self.name}: a batch must be a pair (x, y), found {found} as batch {number} of epoch {epoch + 1}.")
            yield batch[0], batch[1]


def require_rerun(source: Source, epochs: int, name: str) -> None:
    """Raise ConfigError if batches that can be iterated only once are to serve several epochs."""
    if isinstance(source, BatchSource) and source.once and epochs > 1:
        raise ConfigError(
            f"{name} is a {type(source.data).__name__}, which can be iterated only once, but {epochs} epochs need it again. "
            "Pass a list, an object whose __iter__ starts anew, or a function epoch -> batches."
        )


def check_arrays(data: tuple[Any, Any], name: str = "data") -> tuple[np.ndarray, np.ndarray]:
    """x and y as arrays with the same number of rows, at least one. Raises ShapeError or DtypeError."""
    if len(data) != 2 or any(isinstance(part, (tuple, list)) for part in data):
        raise DtypeError(f"{name}: a tuple must be two arrays (x, y); to pass batches, make it a list [(x, y), ...].")
    x, y = (np.asarray(part) for part in data)
    for key, array in (("x", x), ("y", y)):
        if array.dtype.kind not in "biuf":
            raise DtypeError(f"{name}: {key} must be an array of numbers, found dtype {array.dtype}.")
        if not array.ndim:
            raise ShapeError(f"{name}: {key} must have rows, found a single number.")
    if len(x) != len(y):
        raise ShapeError(f"{name}: x and y must have as many rows as each other, found shapes {x.shape} and {y.shape}.")
    if not len(x):
        raise ShapeError(f"{name} is empty: x has shape {x.shape}.")
    return x, y


def check_count(name: str, value: Any, least: int = 1) -> int:
    """The value if it is an integer of at least `least`. Raises ConfigError."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise ConfigError(f"{name} must be an integer of at least {least}, found {value!r}.")
    return int(value)


def count_rows(y: Any) -> int:
    """The rows of the targets of a batch: of an array, a tensor, or the first of several in a tuple, list or dict. Raises DtypeError."""
    if isinstance(y, dict):
        y = tuple(y.values())
    if isinstance(y, (tuple, list)) and y and hasattr(y[0], "shape"):
        y = y[0]
    if hasattr(y, "shape") and len(y.shape):
        return int(y.shape[0])
    if isinstance(y, list):
        return len(y)
    raise DtypeError(f"The targets of a batch must have rows (an array, or several in a tuple, list or dict), found a {type(y).__name__}.")


def batches(x: Any, y: Any, batch_size: int, *, rng: np.random.Generator | None = None) -> Iterator[Batch]:
    """One pass over the rows of two arrays in batches (x, y), the last maybe smaller; in random order if given a generator."""
    return _cut(*check_arrays((x, y)), check_count("batch_size", batch_size), rng, 0)


def _cut(x: np.ndarray, y: np.ndarray, size: int, rng: np.random.Generator | None, skip: int) -> Iterator[Batch]:
    order = None if rng is None else rng.permutation(len(x))
    for start in range(skip * size, len(x), size):
        rows = slice(start, start + size) if order is None else order[start : start + size]
        yield x[rows], y[rows]


def split(x: Any, y: Any, shares: Sequence[float] = (0.8, 0.1, 0.1), *, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Cut the rows of two arrays at random into disjoint parts (x, y), by default for training, validation and test.

    Every row goes into exactly one part; the sizes are as near to the shares, which sum to 1, as whole rows allow. The
    parts of a seed stay the same. Raises ConfigError for shares that make no sense or leave a part without a row.
    """
    x, y = check_arrays((x, y))
    if not len(shares) or any(not share > 0 for share in shares) or abs(sum(shares) - 1) > 1e-9:
        raise ConfigError(f"shares must be positive and sum to 1, found {tuple(shares)}.")
    cuts = [0, *(round(len(x) * sum(shares[: i + 1])) for i in range(len(shares)))]
    sizes = np.diff(cuts)
    if not sizes.all():
        raise ConfigError(f"{len(x)} rows are too few for the shares {tuple(shares)}: the parts would have {sizes.tolist()} rows.")
    order = np.random.default_rng(check_count("seed", seed, 0)).permutation(len(x))
    return [(x[rows], y[rows]) for rows in np.split(order, cuts[1:-1])]


def check_batch_size(batch_size: int | None, *data: Data | None) -> None:
    """Raise ConfigError if there is a batch size, but no arrays that it could be for."""
    if batch_size is not None and not any(isinstance(part, tuple) for part in data):
        raise ConfigError("batch_size is for arrays; the batches given here have a size already. Leave it out.")
