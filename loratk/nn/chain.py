"""Chains: neighbouring layers of which each is a product with a frozen matrix, maybe with an adapter, go through one op.

Asking the modules of a small network what they are took as long as half of its forward pass, so what they say is kept while nothing
about any module changes (`version`).
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ..autograd import Tensor
from ..autograd.modes import modes
from ..autograd.ops.lora import LoraChain
from .version import version

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


class Route:
    """The way through modules in a row, chains of them as one op each: what holds of them in one version."""

    def __init__(self, modules: Sequence["Module"]) -> None:
        self.version = version.now  # before they are asked
        links = [module.link() for module in modules]
        self._parts: list[Callable[[Any], Any]] = []
        at = 0
        while at < len(modules):
            stop = _end(links, at)
            self._parts.append(modules[at] if stop - at < 2 else Chain(modules[at:stop], links[at:stop]))
            at = max(stop, at + 1)

    def __call__(self, x: Any) -> Any:
        """The last module of the one before ... of the first of x."""
        for part in self._parts:
            x = part(x)
        return x


def _end(links: Sequence[Any], at: int) -> int:
    """Where the chain ends that begins at a place; the place itself if none does."""
    if not isinstance(links[at], Link):
        return at
    stop = at + 1
    while stop < len(links) and (isinstance(links[stop], Link) or (links[stop] is RELU and links[stop - 1] is not RELU)):
        stop += 1
    return stop


class Chain:
    """Two or more modules as one op, where their input fits it."""

    def __init__(self, modules: Sequence["Module"], links: Sequence[Any]) -> None:
        self._modules = modules
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
        self._op = LoraChain(flat, tuple(scalings), tuple(relus))

    def __call__(self, x: Any) -> Tensor:
        """The last module of the one before ... of the first of x."""
        x = self._modules[0].input(x)
        if not _fits(x):
            for module in self._modules:
                x = module(x)
            return x
        if x.ndim == 2:
            return self._op(x)
        y = self._op(x.reshape(-1, x.shape[-1]))
        return y.reshape(*x.shape[:-1], y.shape[1])


def _fits(x: Tensor) -> bool:
    shape = x.shape
    return len(shape) >= 2 and x.data.dtype.kind == "f" and 0 < x.size // max(1, shape[-1]) <= MOST_ROWS and not modes.anomaly
