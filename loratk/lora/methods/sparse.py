"""A sparse delta."""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np

from ...autograd import Tensor, ops
from ...errors import choices
from ...exchange.factors import frobenius
from ...kernels import Backend
from ..settings import is_number
from .base import Call, Method
from .lora import times

CHOICES = ("magnitude", "random", "gradient", "snip")
BY_GRADIENT = ("gradient", "snip")


class Sparse(Method):
    """W + a matrix with few entries, at places that are chosen once and stay: `sparse_values` (n,) at `sparse_index` (n,), sorted.

    An index is i k + j for row i and column j. By `choose` they are those of the largest entries in size of W ("magnitude"), of the
    gradient G of the loss for W on data ("gradient"), or of G times W entry by entry ("snip", Lee et al. 2019), or any ("random"): the
    masks of SHiRA, Bhardwaj et al. 2024, sec. 3.1. n = rank (d + k), as many as LoRA of that rank has, or the share `density` of all.
    The values start at 0, and are all that trains; the file has the two arrays and no matrix. alpha means nothing to it.
    """

    name, proportional, scaled = "sparse", True, False
    options: ClassVar[Mapping[str, Any]] = {"choose": "magnitude", "density": None}

    def option_faults(self, options: Mapping[str, Any]) -> Iterator[str]:
        """Unknown names, and values that are no such thing."""
        yield from super().option_faults(options)
        if (choose := options.get("choose", "magnitude")) not in CHOICES:
            yield f"choose must be one of {choices(CHOICES)}, found {choose!r}"
        if (density := options.get("density")) is not None and not (is_number(density) and 0 < density <= 1):
            yield f"density must be a number in (0, 1], or None, found {density!r}"

    def initial(self, weight: np.ndarray, rank: int, rng: np.random.Generator, options: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """sparse_index (n,) of the least integers that hold them, int32 or int64, and sparse_values (n,), zero."""
        count = self._count(weight, rank, options)
        if options.get("choose", "magnitude") == "random":
            return self._at(np.sort(rng.choice(weight.size, count, replace=False, shuffle=False)), weight)
        return self._at(_largest(np.abs(weight).reshape(-1), count), weight)

    def needs(self, options: Mapping[str, Any]) -> str | None:
        """Gradients, for the choices that are made by them."""
        return "gradients" if options.get("choose") in BY_GRADIENT else None

    def informed(
        self, weight: np.ndarray, rank: int, rng: np.random.Generator, options: Mapping[str, Any], evidence: np.ndarray
    ) -> dict[str, np.ndarray]:
        """The same by the mean gradient (d, k)."""
        sizes = np.abs(evidence if options["choose"] == "gradient" else evidence * weight)
        return self._at(_largest(sizes.reshape(-1), self._count(weight, rank, options)), weight)

    def _count(self, weight: np.ndarray, rank: int, options: Mapping[str, Any]) -> int:
        d, k = weight.shape
        return _count(d, k, rank, options.get("density"))

    def _at(self, index: np.ndarray, weight: np.ndarray) -> dict[str, np.ndarray]:
        dtype = np.int32 if weight.size <= np.iinfo(np.int32).max else np.int64
        return {"sparse_index": index.astype(dtype), "sparse_values": np.zeros(len(index), weight.dtype)}

    def shapes(self, d: int, k: int, rank: int) -> dict[str, tuple[int, ...]]:
        """sparse_index (n,), sparse_values (n,)."""
        count = _count(d, k, rank, None)
        return {"sparse_index": (count,), "sparse_values": (count,)}

    def rank_limit(self, d: int, k: int, options: Mapping[str, Any]) -> int | None:
        """The rank at which all entries train."""
        return -(-d * k // (d + k)) if options.get("density") is None else None

    def parameter_faults(self, parameters: Mapping[str, np.ndarray], d: int, k: int, rank: int) -> Iterator[str]:
        """Anything but two arrays of one length, and places that are not in order, twice, or outside of the weight."""
        if set(parameters) != {"sparse_index", "sparse_values"}:
            yield f"its tensors must be sparse_index and sparse_values, found {choices(sorted(parameters))}"
            return
        index, values = parameters["sparse_index"], parameters["sparse_values"]
        if index.ndim != 1 or index.shape != values.shape or not index.size or index.dtype.kind not in "iu":
            yield f"sparse_index and sparse_values must be of one length, found {index.dtype} {index.shape} and {values.shape}"
        elif index[0] < 0 or index[-1] >= d * k or (index[1:] <= index[:-1]).any():
            yield f"sparse_index must rise from 0 up to at most {d * k - 1}, each place once"

    def update(self, call: Call, parameters: Mapping[str, Tensor], scaling: float) -> Tensor:
        """x times the matrix."""
        values, index = parameters["sparse_values"], parameters["sparse_index"]
        d, k = (call.matrix or call.weight)().shape
        return call.apply(ops.scatter(values * scaling, index, d * k).reshape(d, k))

    def delta(self, K: Backend, weight: Any, parameters: Mapping[str, Any], scaling: float) -> Any:
        """The matrix."""
        d, k = weight.shape
        dense = K.scatter(parameters["sparse_values"], parameters["sparse_index"], size=d * k)
        return times(K, K.reshape(dense, shape=(d, k)), scaling)

    def norm(self, parameters: Mapping[str, np.ndarray], scaling: float) -> float | None:
        """That of the values, whatever their places."""
        return abs(scaling) * frobenius(parameters["sparse_values"])


def _count(d: int, k: int, rank: int, density: float | None) -> int:
    """How many entries train, at least one."""
    return min(rank * (d + k), d * k) if density is None else max(1, round(density * d * k))


def _largest(sizes: np.ndarray, count: int) -> np.ndarray:
    """Where the largest numbers are, the first ones among equals: (n,) -> (count,), sorted."""
    least = np.partition(sizes, sizes.size - count)[sizes.size - count]
    above, equal = np.flatnonzero(sizes > least), np.flatnonzero(sizes == least)
    return np.sort(np.concatenate([above, equal[: count - above.size]]))
