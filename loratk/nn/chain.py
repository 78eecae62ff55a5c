"""Chains: neighbouring layers of which each is a product with a frozen matrix, maybe with an adapter, go through one op."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ..autograd import Tensor, ops
from ..autograd.modes import modes

if TYPE_CHECKING:
    from .module import Module

MOST_ROWS = 1 << 12  # beyond that a launch costs nothing beside its work, and results of layers may be let go one by one


class Link(NamedTuple):
    """A layer x W + bias + scaling (x A) B with W frozen: a handle (d, k), (k,) or None, (d, r) and (r, k), or None twice."""

    weight: Any
    bias: Tensor | None
    a: Tensor | None = None
    b: Tensor | None = None
    scaling: float = 0.0


RELU = "relu"
"""What a module says of itself that computes max(x, 0)."""


def run(modules: Sequence["Module"], x: Any) -> Any:
    """The last module of the one before ... of the first of x, chains of them as one op each."""
    links = [module.link() for module in modules]
    at, count = 0, len(modules)
    while at < count:
        stop = at
        if isinstance(links[at], Link):
            stop = at + 1
            while stop < count and (isinstance(links[stop], Link) or (links[stop] is RELU and links[stop - 1] is not RELU)):
                stop += 1
        if stop - at < 2 or not _fits(x := modules[at].input(x)):
            x, at = modules[at](x), at + 1
            continue
        x, at = _chain(links[at:stop], x), stop
    return x


def _fits(x: Tensor) -> bool:
    shape = x.shape
    return len(shape) >= 2 and x.data.dtype.kind == "f" and 0 < x.size // max(1, shape[-1]) <= MOST_ROWS and not modes.anomaly


def _chain(links: Sequence[Any], x: Tensor) -> Tensor:
    flat: list[Any] = []
    scalings: list[float] = []
    relus: list[bool] = []
    for link in links:
        if link is RELU:
            relus[-1] = True
        else:
            flat += link[:4]
            scalings.append(link.scaling)
            relus.append(False)
    if x.ndim == 2:
        return ops.lora_chain(x, *flat, scalings=tuple(scalings), relus=tuple(relus))
    y = ops.lora_chain(x.reshape(-1, x.shape[-1]), *flat, scalings=tuple(scalings), relus=tuple(relus))
    return y.reshape(*x.shape[:-1], y.shape[1])
