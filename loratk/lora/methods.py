"""Methods: what the update of a (d, k) weight is, knowing only matrices. Every method works on every layer type."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ..autograd import Tensor
from ..errors import choices
from ..kernels import Backend


@dataclass(frozen=True)
class Call:
    """One forward pass through one adapter, as its method sees it: the layer's own operation, with matrices to choose.

    product: what the frozen weight makes of the input, without bias, (..., k).
    apply: the layer's operation with a matrix (d, c) in the weight's place, on the input after the adapter's dropout.
    dropped_product: `product` on the input after dropout (the same tensor where there is none), computed when called.
    weight: a handle of the weight (d, k) for the kernels; its gradient is not taken.
    """

    product: Tensor
    apply: Callable[[Any], Tensor]
    dropped_product: Callable[[], Tensor]
    weight: Callable[[], Any]


class Method:
    """A way of updating a matrix. A subclass gives its `name`, the three functions below, and its options with defaults.

    Parameters are named arrays; `scaling` is alpha / rank or what the config makes of it. Orientation: A (d, r), B (r, k).
    """

    name: ClassVar[str]
    options: ClassVar[Mapping[str, Any]] = {}
    """The method's own options and their defaults."""
    proportional: ClassVar[bool] = False
    """Whether the update is proportional to `scaling` and, given a mask, that of the masked input: then a layer type's fused path
    serves adapters of any weight, and dropout."""

    def option_faults(self, options: Mapping[str, Any]) -> Iterator[str]:
        """What is wrong with the options of a config, a line each."""
        for name in options:
            if name not in self.options:
                yield f"the method {self.name!r} has no option {name!r}; its options: {choices(self.options)}"

    def initial(self, weight: np.ndarray, rank: int, rng: np.random.Generator, options: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """The parameters to start from, by name, for a weight (d, k), such that the update is 0; in the weight's dtype."""
        raise NotImplementedError

    def shapes(self, d: int, k: int, rank: int) -> dict[str, tuple[int, ...]]:
        """The shape of each parameter for a (d, k) weight."""
        raise NotImplementedError

    def update(self, call: Call, parameters: Mapping[str, Tensor], scaling: float) -> Tensor:
        """What the adapter adds to `call.product`: (..., k)."""
        raise NotImplementedError

    def delta(self, K: Backend, weight: Any, parameters: Mapping[str, Any], scaling: float) -> Any:
        """What the adapter adds to the weight, as an array of the backend (d, k): what merging adds."""
        raise NotImplementedError


INITS = ("kaiming", "gaussian")


def draw_A(d: int, rank: int, rng: np.random.Generator, dtype: Any, init: str) -> np.ndarray:
    """A random A (d, r): `kaiming` is uniform in +-1/sqrt(d) (He et al. 2015 with a = sqrt 5), `gaussian` N(0, 1/r)."""
    if init == "gaussian":
        return (rng.standard_normal((d, rank)) / math.sqrt(rank)).astype(dtype)
    return rng.uniform(-(d**-0.5), d**-0.5, (d, rank)).astype(dtype)


class Lora(Method):
    """Low-rank adaptation: W + scaling A B, A random, B zero. Hu et al. 2021, eq. 3.

    Option `init`: how A is drawn, `kaiming` (uniform in +-1/sqrt(d)) or `gaussian` (N(0, 1/r)).
    """

    name, proportional = "lora", True
    options: ClassVar[Mapping[str, Any]] = {"init": "kaiming"}

    def option_faults(self, options: Mapping[str, Any]) -> Iterator[str]:
        """Unknown options, and an init that does not exist."""
        yield from super().option_faults(options)
        if options.get("init", "kaiming") not in INITS:
            yield f"init must be one of {choices(INITS)}, found {options['init']!r}"

    def initial(self, weight: np.ndarray, rank: int, rng: np.random.Generator, options: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """lora_A (d, r) random, lora_B (r, k) zero."""
        d, k = weight.shape
        init = options.get("init", self.options["init"])
        return {"lora_A": draw_A(d, rank, rng, weight.dtype, init), "lora_B": np.zeros((rank, k), weight.dtype)}

    def shapes(self, d: int, k: int, rank: int) -> dict[str, tuple[int, ...]]:
        """lora_A (d, r), lora_B (r, k)."""
        return {"lora_A": (d, rank), "lora_B": (rank, k)}

    def update(self, call: Call, parameters: Mapping[str, Tensor], scaling: float) -> Tensor:
        """scaling (x A) B."""
        return call.apply(parameters["lora_A"]) @ (parameters["lora_B"] * scaling)

    def delta(self, K: Backend, weight: Any, parameters: Mapping[str, Any], scaling: float) -> Any:
        """scaling A B."""
        return _scaled(K, K.matmul(parameters["lora_A"], parameters["lora_B"]), scaling)


class Dora(Lora):
    """Weight-decomposed adaptation: m (W + scaling A B) / ||W + scaling A B||, the norm of each column. Liu et al. 2024, eq. 5.

    `magnitude` m (k,) starts as the column norms of W, so that the update starts at 0. In the backward pass the norm
    is a constant (section 4.3). Options as for `lora`.
    """

    name, proportional = "dora", False

    def initial(self, weight: np.ndarray, rank: int, rng: np.random.Generator, options: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """lora_A (d, r) random, lora_B (r, k) zero, magnitude (k,) the column norms of the weight."""
        magnitude = np.sqrt(np.sum(np.square(weight, dtype=np.float64), axis=0)).astype(weight.dtype)
        return {**super().initial(weight, rank, rng, options), "magnitude": magnitude}

    def shapes(self, d: int, k: int, rank: int) -> dict[str, tuple[int, ...]]:
        """lora_A (d, r), lora_B (r, k), magnitude (k,)."""
        return {**super().shapes(d, k, rank), "magnitude": (k,)}

    def update(self, call: Call, parameters: Mapping[str, Tensor], scaling: float) -> Tensor:
        """(m/c - 1) x W + m/c scaling (x A) B, c the column norms."""
        m, a, b = (parameters[name] for name in ("magnitude", "lora_A", "lora_B"))
        ratio = m / Tensor(_column_norm(m.backend, call.weight(), a.data, b.data, scaling), backend=m.backend)
        return (ratio - 1.0) * call.dropped_product() + ratio * super().update(call, parameters, scaling)

    def delta(self, K: Backend, weight: Any, parameters: Mapping[str, Any], scaling: float) -> Any:
        """m/c (W + scaling A B) - W."""
        a, b = parameters["lora_A"], parameters["lora_B"]
        norm = _column_norm(K, K.freeze_weight(weight), a, b, scaling)
        moved = K.add(weight, super().delta(K, weight, parameters, scaling))
        return K.sub(K.mul(moved, K.div(parameters["magnitude"], norm)), weight)


def _scaled(K: Backend, x: Any, factor: float) -> Any:
    return K.mul(x, K.asarray(np.asarray(factor, x.dtype)))


def _column_norm(K: Backend, weight: Any, a: Any, b: Any, scaling: float) -> Any:
    """||W + scaling A B|| per column, kept above 0 so that a column of zeros stays one."""
    norm = K.lora_column_norm(weight, a, b, scaling=scaling)
    return K.maximum(norm, K.asarray(np.asarray(np.finfo(norm.dtype).tiny, norm.dtype)))
