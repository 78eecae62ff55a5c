"""VeRA."""

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np

from ...autograd import Tensor
from ...exchange.projection import gain, projection
from ...kernels import Backend
from ..settings import is_integer, is_number
from .base import Call, Method
from .lora import times

SHARED = ("drawn", "kept")


class Vera(Method):
    """Vector-based random matrix adaptation: W + A diag(d) B diag(b), A and B random, shared by all layers. Kopiczko et al. 2024, eq. 2.

    Only `vera_d` (r,) and `vera_b` (k,) train; d starts at `d_initial`, b at 0. A (d, r) and B (r, k) are drawn from the option `seed`,
    which the file holds in their place, and stand in memory once for all layers (`loratk.exchange.projection`). With `shared` "kept" they
    are frozen parameters of each layer and its file: that is how adapters of PEFT come, whose matrices PyTorch has drawn. The rank may
    be above min(d, k). alpha means nothing to it.
    """

    name, proportional, drops_ranks, scaled = "vera", True, True, False
    options: ClassVar[Mapping[str, Any]] = {"d_initial": 0.1, "seed": 0, "shared": "drawn"}

    def option_faults(self, options: Mapping[str, Any]) -> Iterator[str]:
        """Unknown names, and values that are no such thing."""
        yield from super().option_faults(options)
        first, seed, shared = (options.get(name, usual) for name, usual in self.options.items())
        if not is_number(first) or not np.isfinite(np.float32(first)) or not first:
            yield f"d_initial must be a finite number other than 0, found {first!r}"
        if not is_integer(seed) or not 0 <= seed < 2**63:
            yield f"seed must be an integer in [0, 2**63), found {seed!r}"
        if shared not in SHARED:
            yield f"shared must be one of {', '.join(map(repr, SHARED))}, found {shared!r}"

    def initial(self, weight: np.ndarray, rank: int, rng: np.random.Generator, options: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """vera_d (r,), vera_b (k,) zero, and vera_seed (), or shared_A (d, r) and shared_B (r, k)."""
        (d, k), chosen = weight.shape, {**self.options, **options}
        values = {"vera_d": np.full(rank, chosen["d_initial"], weight.dtype), "vera_b": np.zeros(k, weight.dtype)}
        if chosen["shared"] == "drawn":
            return values | {"vera_seed": np.array(chosen["seed"], np.int64)}
        a, b = projection(chosen["seed"], d, k, rank, weight.dtype)
        return values | {"shared_A": a * weight.dtype.type(gain(d, rank)), "shared_B": np.ascontiguousarray(b)}

    def shapes(self, d: int, k: int, rank: int) -> dict[str, tuple[int, ...]]:
        """vera_d (r,), vera_b (k,), vera_seed ()."""
        return {"vera_d": (rank,), "vera_b": (k,), "vera_seed": ()}

    def rank_limit(self, d: int, k: int, options: Mapping[str, Any]) -> None:
        """Any rank: it costs one number."""

    def parameter_faults(self, parameters: Mapping[str, np.ndarray], d: int, k: int, rank: int) -> Iterator[str]:
        """Shapes other than those of either kind, and a seed below 0."""
        if "shared_A" not in parameters and "shared_B" not in parameters:
            yield from super().parameter_faults(parameters, d, k, rank)
            if (seed := parameters.get("vera_seed")) is not None and not (seed.dtype.kind in "iu" and (seed >= 0).all()):
                yield f"vera_seed must be an integer of at least 0, found {seed.dtype} {seed.tolist()}"
            return
        want, found = (
            {"vera_d": (rank,), "vera_b": (k,), "shared_A": (d, rank), "shared_B": (rank, k)},
            {name: array.shape for name, array in parameters.items()},
        )
        if found != want:
            yield f"for a {d, k} weight its tensors must be {want}, found {found}"

    def frozen(self, options: Mapping[str, Any]) -> frozenset[str]:
        """The shared matrices."""
        return frozenset({"shared_A", "shared_B"} if options.get("shared", "drawn") == "kept" else ())

    def update(self, call: Call, parameters: Mapping[str, Tensor], scaling: float) -> Tensor:
        """((x A) * d) B * b."""
        d, b = parameters["vera_d"], parameters["vera_b"]
        if "shared_A" in parameters:
            inner, outer = parameters["shared_A"], parameters["shared_B"]
        else:
            rows = (call.matrix or call.weight)().shape[0]
            placed = _placed(d.backend, int(parameters["vera_seed"].numpy()), rows, b.shape[0], d.shape[0], d.dtype)
            inner, outer = (Tensor(array, backend=d.backend) for array in placed)
            scaling *= gain(rows, d.shape[0])
        return (call.drop_ranks(call.apply(inner) * (d * scaling)) @ outer) * b

    def delta(self, K: Backend, weight: Any, parameters: Mapping[str, Any], scaling: float) -> Any:
        """A diag(d) B diag(b)."""
        d, b = parameters["vera_d"], parameters["vera_b"]
        if "shared_A" in parameters:
            inner, outer = parameters["shared_A"], parameters["shared_B"]
        else:
            rows, rank = weight.shape[0], d.shape[0]
            inner, outer = _placed(K, int(K.numpy(parameters["vera_seed"])), rows, b.shape[0], rank, np.dtype(d.dtype))
            scaling *= gain(rows, rank)
        return K.mul(K.matmul(K.mul(inner, times(K, d, scaling)), outer), b)


def _placed(K: Backend, seed: int, d: int, k: int, rank: int, dtype: np.dtype[Any]) -> tuple[Any, Any]:
    """The shared matrices on a backend: where that works on NumPy's arrays the very views, else copies that are kept."""
    a, b = projection(seed, d, k, rank, dtype)
    return (a, b) if K.asarray(a) is a else _copied(K, seed, d, k, rank, dtype)


@lru_cache(maxsize=64)
def _copied(K: Backend, seed: int, d: int, k: int, rank: int, dtype: np.dtype[Any]) -> tuple[Any, Any]:
    a, b = projection(seed, d, k, rank, dtype)
    return K.asarray(a), K.asarray(np.ascontiguousarray(b))
