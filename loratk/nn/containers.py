"""Modules in a row, and the multi-layer perceptron."""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from ..errors import ConfigError, DtypeError, UnknownNameError, choices
from .activations import ACTIVATIONS
from .chain import Route
from .linear import Linear, positive
from .module import Module, generator
from .variant import variant
from .version import version

MOST_ROUTES = 64  # kept by one Sequential


class Sequential(Module):
    """Modules one after the other, named 0, 1, ... in their order."""

    def __init__(self, *modules: Module) -> None:
        for i, module in enumerate(modules):
            if not isinstance(module, Module):
                raise DtypeError(f"Sequential takes modules, found {type(module).__name__} at place {i}.")
            setattr(self, str(i), module)

    def forward(self, x: Any) -> Any:
        """The last module of the one before ... of the first of x."""
        chosen = variant.get()
        key = None if chosen is None else chosen.key
        route = vars(self).get("_routes", {}).get(key)
        if route is None or route.version is not version.now:
            route = self._keep(key, Route([module for _, module in self.children()]))
        return route(x)

    def _keep(self, key: Any, route: Route) -> Route:
        """Keep a route beside those of the same version: a new dict, as other threads may be reading the old one."""
        kept = {other: old for other, old in vars(self).get("_routes", {}).items() if old.version is route.version}
        routes = dict(list(kept.items())[1 - MOST_ROUTES :]) | {key: route}
        vars(self)["_routes"] = routes  # not set as an attribute, which would change the version
        return route

    def __getstate__(self) -> dict[str, Any]:
        """What copies and pickles take: all but the routes, which lead through this one's children."""
        return {name: value for name, value in vars(self).items() if name != "_routes"}

    def __len__(self) -> int:
        return sum(1 for _ in self.children())

    def __iter__(self) -> Iterator[Module]:
        return (module for _, module in self.children())

    def __getitem__(self, i: int) -> Module:
        return [module for _, module in self.children()][i]


def activation(name: str) -> Callable[[], Module]:
    """The activation module of that name. Raises UnknownNameError."""
    if name not in ACTIVATIONS:
        raise UnknownNameError(f"Unknown activation {name!r}. Activations: {choices(ACTIVATIONS)}.")
    return ACTIVATIONS[name]


class MLP(Sequential):
    """Linear layers of the given sizes with an activation between them, and after the last too if `output_activation`.

    MLP([784, 256, 10]) is Linear(784, 256), ReLU, Linear(256, 10): children 0, 1, 2.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        *,
        activation: str = "relu",
        output_activation: bool = False,
        bias: bool = True,
        rng: np.random.Generator | int,
        dtype: Any = np.float32,
    ) -> None:
        rng, sizes = generator(rng), check_sizes(sizes)
        layers = [Linear(d, k, bias=bias, rng=rng, dtype=dtype) for d, k in pairwise(sizes)]
        super().__init__(*interleave(layers, activation, output_activation))


def check_sizes(sizes: Sequence[int]) -> list[int]:
    """The sizes of a chain of layers, at least an input and an output. Raises ConfigError."""
    sizes = list(sizes)
    if len(sizes) < 2:
        raise ConfigError(f"A network needs at least an input and an output size, found {sizes}.")
    positive(**{f"size {i}": size for i, size in enumerate(sizes)})
    return sizes


def interleave(layers: Sequence[Module], name: str, last: bool) -> list[Module]:
    """The layers with an activation of that name after each, after the last only if `last`."""
    make, out = activation(name), []
    for i, layer in enumerate(layers):
        out += [layer, make()] if last or i + 1 < len(layers) else [layer]
    return out
