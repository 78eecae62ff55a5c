"""LoKr."""

from collections.abc import Iterator, Mapping
from math import prod
from typing import Any, ClassVar

import numpy as np

from ...autograd import Tensor
from ...errors import ConfigError
from ...kernels import Backend
from ..settings import is_integer
from .base import Call, Method
from .lora import times

FIRST, SECOND = ("lokr_A1", "lokr_B1"), ("lokr_A2", "lokr_B2")
WHOLE = ("lokr_W1", "lokr_W2")


class Lokr(Method):
    """Kronecker product: W + scaling W1 kron W2, W1 (d1, k1), W2 (d2, k2), d = d1 d2, k = k1 k2, rank up to that of both multiplied.

    Edalati et al. 2022 (KronA), eq. 3, in the parts and under the names of LyCORIS (Yeh et al. 2024, sec. 3). W1 is whole, or A1 B1 with
    `decompose_both` where the rank is below half of its longer side; W2 is A2 B2, or whole with `full_matrix` and where the rank is not
    below half of its longer side. `factor` asks for a d1 and k1 near it; -1 for such near the roots of d and k. `split` [d1, k1] says
    them instead, and then both are in halves just as `decompose_both` and not `full_matrix` say. The W2 and A2 of a convolution have its
    window, (*window, d2, k2), and d1 d2 is its channels. W2 (or A2) starts at 0, the rest uniform as PyTorch's linear layers.
    """

    name, proportional, windowed = "lokr", True, True
    scales = (*FIRST, *SECOND, *WHOLE)
    options: ClassVar[Mapping[str, Any]] = {"factor": -1, "decompose_both": False, "full_matrix": False, "split": None}

    def option_faults(self, options: Mapping[str, Any]) -> Iterator[str]:
        """Unknown names, and values that are no such thing."""
        yield from super().option_faults(options)
        if not is_integer(factor := options.get("factor", -1)) or (factor != -1 and factor < 1):
            yield f"factor must be an integer of at least 1, or -1, found {factor!r}"
        for name in ("decompose_both", "full_matrix"):
            if not isinstance(value := options.get(name, False), bool):
                yield f"{name} must be True or False, found {value!r}"
        split = options.get("split")
        if split is not None and not (
            isinstance(split, list | tuple) and len(split) == 2 and all(is_integer(size) and size >= 1 for size in split)
        ):
            yield f"split must be two integers [d1, k1] of at least 1, or None, found {split!r}"

    def initial(self, weight: np.ndarray, rank: int, rng: np.random.Generator, options: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """lokr_W1 (d1, k1) or lokr_A1 (d1, r), lokr_B1 (r, k1); lokr_W2 (*window, d2, k2) or lokr_A2 (*window, d2, r), lokr_B2 (r, k2)."""
        shapes = lokr_shapes(weight.shape, rank, options)
        zero = "lokr_W2" if "lokr_W2" in shapes else "lokr_A2"
        values = {}
        for name, shape in shapes.items():
            bound = np.float32(shape[0] ** -0.5)  # of a B that is the rank
            drawn = np.float32(0) if name == zero else bound
            values[name] = (drawn * (np.float32(2) * rng.random(shape, np.float32) - np.float32(1))).astype(weight.dtype)
            values[name] += weight.dtype.type(0)  # no negative zeros
        return values

    def shapes(self, d: int, k: int, rank: int) -> dict[str, tuple[int, ...]]:
        """Those of the default options, of no convolution."""
        return lokr_shapes((d, k), rank, {})

    def rank_limit(self, d: int, k: int, options: Mapping[str, Any]) -> None:
        """Any rank: one that is too large for halves makes both factors whole."""

    def parameter_faults(self, parameters: Mapping[str, np.ndarray], d: int, k: int, rank: int) -> Iterator[str]:
        """Parameters that are no two factors, and factors of another size."""
        shapes = {name: array.shape for name, array in parameters.items()}
        wanted = [{*first, *second} for first in (FIRST, WHOLE[:1]) for second in (SECOND, WHOLE[1:])]
        if set(shapes) not in wanted:
            yield f"it must have lokr_W1, or lokr_A1 and lokr_B1, and lokr_W2, or lokr_A2 and lokr_B2, found {', '.join(sorted(shapes))}"
            return
        first, second = (_sizes(shapes, number) for number in "12")
        if first is None or second is None or (first[0] * second[0], first[1] * second[1]) != (d, k):
            yield f"its tensors do not make a {d, k} weight: {shapes}"

    def update(self, call: Call, parameters: Mapping[str, Tensor], scaling: float) -> Tensor:
        """x times the Kronecker product."""
        first, second = (_joined(parameters, number) for number in "12")
        (d1, k1), k2 = first.shape, second.shape[-1]
        d2 = second.shape[-2]
        second = second.reshape(second.size // (d2 * k2), 1, d2, 1, k2)
        return call.apply(((first * scaling).reshape(1, d1, 1, k1, 1) * second).reshape(second.shape[0] * d1 * d2, k1 * k2))

    def delta(self, K: Backend, weight: Any, parameters: Mapping[str, Any], scaling: float) -> Any:
        """scaling W1 kron W2, under every place of a window."""
        first, second = (_product(K, parameters, number) for number in "12")
        (d1, k1), (d2, k2) = first.shape, second.shape[-2:]
        window = prod(second.shape[:-2])
        product = K.mul(K.reshape(first, shape=(1, d1, 1, k1, 1)), K.reshape(second, shape=(window, 1, d2, 1, k2)))
        return times(K, K.reshape(product, shape=(window * d1 * d2, k1 * k2)), scaling)


def factorization(size: int, factor: int = -1) -> tuple[int, int]:
    """A number as a product of two, the smaller first: factor and the rest where that divides it, else the nearest with one up to factor.

    -1 asks for the pair nearest to the root. As in LyCORIS, `functional.general.factorization`.
    """
    if factor > 0 and size % factor == 0:
        return min(factor, size // factor), max(factor, size // factor)
    largest = size if factor < 0 else factor
    smaller = max(n for n in range(1, int(size**0.5) + 1) if size % n == 0 and n <= max(largest, 1))
    return smaller, size // smaller


def lokr_shapes(weight: tuple[int, ...], rank: int, options: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The parameters for a weight (*window, channels, k) under the options. Raises ConfigError for a split that does not divide it."""
    factor, decompose, full = options.get("factor", -1), options.get("decompose_both", False), options.get("full_matrix", False)
    *window, d, k = weight
    if (split := options.get("split")) is not None:
        d1, k1 = split
        if d % d1 or k % k1:
            raise ConfigError(f"split {list(split)} must divide {d} inputs and {k} outputs; choose others for this layer by layer_pattern.")
        d2, k2 = d // d1, k // k1
        halves = decompose, not full
    else:
        (d1, d2), (k1, k2) = factorization(d, factor), factorization(k, factor)
        halves = decompose and not full and rank < max(d1, k1) / 2, not full and rank < max(d2, k2) / 2
    first = {"lokr_A1": (d1, rank), "lokr_B1": (rank, k1)} if halves[0] else {"lokr_W1": (d1, k1)}
    second = {"lokr_A2": (*window, d2, rank), "lokr_B2": (rank, k2)} if halves[1] else {"lokr_W2": (*window, d2, k2)}
    return first | second


def _sizes(shapes: Mapping[str, tuple[int, ...]], number: str) -> tuple[int, int] | None:
    """Rows and columns of a factor; None where its halves do not fit each other."""
    left, right = shapes.get(f"lokr_W{number}", shapes.get(f"lokr_A{number}", ())), shapes.get(f"lokr_B{number}")
    if len(left) < 2 or (number == "1" and len(left) > 2) or (right is not None and (len(right) != 2 or right[0] != left[-1])):
        return None
    return prod(left[:-1]), left[-1] if right is None else right[1]


def _joined(parameters: Mapping[str, Tensor], number: str) -> Tensor:
    """A factor, (..., d', k')."""
    whole = parameters.get(f"lokr_W{number}")
    return whole if whole is not None else parameters[f"lokr_A{number}"] @ parameters[f"lokr_B{number}"]


def _product(K: Backend, parameters: Mapping[str, Any], number: str) -> Any:
    whole = parameters.get(f"lokr_W{number}")
    return whole if whole is not None else K.matmul(parameters[f"lokr_A{number}"], parameters[f"lokr_B{number}"])
